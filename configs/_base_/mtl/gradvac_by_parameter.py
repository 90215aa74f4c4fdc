custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", aggregator=dict(type="GradVacByParameter", beta=0.01))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
