custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", aggregator=dict(type="GradVac", beta=0.5))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
