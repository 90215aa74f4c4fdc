# Schedule of the code that builds on MTAN's: half the learning rate from epoch 100 on. The numbers
# are reported as the mean of the last ten epochs, which are all tested here.
train_cfg = dict(
    type="EpochBasedTrainLoop", max_epochs=200, val_interval=10, dynamic_intervals=[(191, 1)]
)
param_scheduler = [dict(type="MultiStepLR", by_epoch=True, milestones=[100], gamma=0.5)]
optim_wrapper = dict(
    type="MTLOptimWrapper",
    optimizer=dict(type="Adam", lr=1e-4),
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
