# The mean of the projected gradients; heads get their own.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", aggregator=dict(type="PCGrad"), scale="mean")
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
