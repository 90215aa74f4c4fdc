# The log variances begin at -0.5.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", weighting=dict(type="Uncertainty", initial=-0.5))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
