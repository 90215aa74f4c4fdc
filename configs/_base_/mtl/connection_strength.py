custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper", aggregator=dict(type="ConnectionStrength", phase="mix", draw="epoch")
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
