custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper", weighting=dict(type="FAMO", lr=0.025, weight_decay=0.001)
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
