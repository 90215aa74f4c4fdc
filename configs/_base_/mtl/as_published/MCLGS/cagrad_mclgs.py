# Table 3 of the paper, NYUv2, whose decay of 5e-4 a step is that of r_t = 120000 / steps.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper", aggregator=dict(type="MCLGS", a0=60.0, base=dict(type="CAGrad", c=0.4))
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
