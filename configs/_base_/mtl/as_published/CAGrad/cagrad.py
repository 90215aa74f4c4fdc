# The update of what is shared is multiplied by T.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper", aggregator=dict(type="CAGrad", c=0.5, rescale=1), scale="sum"
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
