# Overlay for a config (--mtl sta, --mtl uncertainty+sta); keeps the config's batch sampler.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper")
train_dataloader = dict(batch_sampler=dict(type="STABatchSampler", tasks_per_sample=1))
