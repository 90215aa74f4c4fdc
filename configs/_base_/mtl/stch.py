custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", weighting=dict(type="STCH", mu=1.0))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
