custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper", weighting=dict(type="Uncertainty", lr=0.025, initial=0.0)
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
