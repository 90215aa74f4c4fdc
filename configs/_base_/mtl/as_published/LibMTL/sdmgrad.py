custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper", aggregator=dict(type="SDMGrad", lam=0.3, steps=20, lr=5.0)
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
