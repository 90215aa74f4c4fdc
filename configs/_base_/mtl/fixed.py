# Weights for the tasks of Mask R-CNN; put those of your own tasks here.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper",
    weighting=dict(type="Fixed", weights=dict(detection=1.0, mask=0.5)),
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
