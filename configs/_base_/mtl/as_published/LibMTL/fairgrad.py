# The weighted sum of the losses is run back, unclipped.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper",
    aggregator=dict(type="FairGrad", alpha=1.0, max_norm=0.0),
    heads="weighted",
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
