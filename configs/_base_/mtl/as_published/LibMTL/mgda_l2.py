# The update is made of the normalised gradients.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper", aggregator=dict(type="MGDA", normalization="l2", update="normalised")
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
