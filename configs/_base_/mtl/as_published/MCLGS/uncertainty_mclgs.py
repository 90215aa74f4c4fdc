# Table 3 of the paper, NYUv2: the row is that of a0 = 40, r_t = 1 in table 1, where the pacing
# reaches 0 at the end of the run.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper",
    aggregator=dict(type="MCLGS", a0=40.0, r_t=1.0),
    weighting=dict(type="Uncertainty"),
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
