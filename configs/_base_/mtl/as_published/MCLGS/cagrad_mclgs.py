# Section 4.2.2 of the paper, NYUv2: 60, falling by 5e-4 a step, which is 0 after 120000 steps;
# over 200 epochs of 398 steps that is r_t = 1.5.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper",
    aggregator=dict(type="MCLGS", a0=60.0, r_t=1.5, base=dict(type="CAGrad", c=0.4)),
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
