custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper", aggregator=dict(type="FORUM", rho=0.1, eta=0.1, steps=5)
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
