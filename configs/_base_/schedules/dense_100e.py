# Schedule of the survey of dense tasks (arXiv 2004.13379): polynomial decay after every epoch, to 0
# after the last one. PolyLR is at its end one epoch earlier than its argument says.
train_cfg = dict(
    type="EpochBasedTrainLoop", max_epochs=100, val_interval=10, dynamic_intervals=[(91, 1)]
)
param_scheduler = [dict(type="PolyLR", by_epoch=True, power=0.9, begin=0, end=101, eta_min=0.0)]
optim_wrapper = dict(
    type="MTLOptimWrapper",
    optimizer=dict(type="Adam", lr=1e-4, weight_decay=1e-4),
    aggregator=dict(type="Sum"),
)
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=True, interval=10, max_keep_ckpts=1),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="MultiTaskVisualizationHook"),
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=50)]
log_processor = dict(by_epoch=True)
