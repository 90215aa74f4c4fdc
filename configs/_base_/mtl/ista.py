# Overlay for a config (--mtl ista, --mtl uncertainty+ista); keeps the config's batch sampler.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper")
train_dataloader = dict(batch_sampler=dict(type="ISTABatchSampler", tasks_per_sample=1))
