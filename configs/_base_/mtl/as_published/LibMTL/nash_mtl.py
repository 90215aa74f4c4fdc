# Heads get the weights before clipping.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper", aggregator=dict(type="NashMTL", max_norm=1.0), heads="weighted"
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
