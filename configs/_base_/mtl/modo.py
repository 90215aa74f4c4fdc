custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", aggregator=dict(type="MoDo", gamma=1e-3, rho=0.1))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
