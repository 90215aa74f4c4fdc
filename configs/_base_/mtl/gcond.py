custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", aggregator=dict(type="GCond"))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
