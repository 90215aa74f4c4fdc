# The weights, which may be negative, are those of the heads too.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", aggregator=dict(type="IMTLG"), heads="weighted")
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
