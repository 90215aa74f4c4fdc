# Schedule of the small variants, which train in minutes on two CPU cores.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=400, val_interval=400)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", T_max=400, eta_min=1e-5, by_epoch=False),
]
optim_wrapper = dict(
    type="MTLOptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=1e-4, fused=True),
    aggregator=dict(type="Sum"),
)
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=10),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=400, max_keep_ckpts=1),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="MultiTaskVisualizationHook"),
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
log_processor = dict(by_epoch=False, window_size=10)
