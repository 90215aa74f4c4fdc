custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper",
    aggregator=dict(type="NashMTL", max_norm=1.0, update_every=1),
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
