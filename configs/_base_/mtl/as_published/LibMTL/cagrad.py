custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", aggregator=dict(type="CAGrad", c=0.5, rescale=1))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
