custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", aggregator=dict(type="GradDrop", leak=0.0))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
