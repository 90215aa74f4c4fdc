custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", weighting=dict(type="GradNorm"))
train_dataloader = dict(batch_sampler=dict(type="STABatchSampler", tasks_per_sample=1))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
