custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper", aggregator=dict(type="DBMTL", beta=0.9), weighting=dict(type="Log")
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
