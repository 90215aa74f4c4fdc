custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", aggregator=dict(type="MCLGS", a0=120.0, r_t=2.0))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
