custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper", aggregator=dict(type="IMTLG"), weighting=dict(type="IMTLL", lr=0.025)
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
