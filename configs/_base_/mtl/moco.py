custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", aggregator=dict(type="MoCo", beta=0.5, gamma=0.1))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
