custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", weighting=dict(type="GradNorm", alpha=1.5, lr=0.025))
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
