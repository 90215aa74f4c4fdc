custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", regularizer=dict(type="CosReg", weight=1.0))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
