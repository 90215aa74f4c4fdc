# The authors clip the gradient of what is shared; clip_grad is about the heads' too.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper",
    weighting=dict(type="FAMO", lr=0.025, weight_decay=0.001),
    clip_grad=dict(max_norm=1.0),
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
