# The weights sum to T, for heads too.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper", aggregator=dict(type="MGDA"), heads="weighted", scale="sum"
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
