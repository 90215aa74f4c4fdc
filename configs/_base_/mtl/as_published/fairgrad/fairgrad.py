# The authors clip the gradient of what is shared; clip_grad is about the heads' too.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper",
    aggregator=dict(type="FairGrad", alpha=2.0, max_norm=0.0),
    scale="sum",
    clip_grad=dict(max_norm=1.0),
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
