custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", weighting=dict(type="SLAW", beta=0.99))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
