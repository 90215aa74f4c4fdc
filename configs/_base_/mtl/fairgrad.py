custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper", aggregator=dict(type="FairGrad", alpha=2.0, max_norm=1.0)
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
