# By the metrics of the validation, which has to take place during the run.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", weighting=dict(type="DTP", gamma=1.0))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
