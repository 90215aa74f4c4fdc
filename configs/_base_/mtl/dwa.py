custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", weighting=dict(type="DWA", temperature=2.0))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
