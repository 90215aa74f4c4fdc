# By the metrics of the validation, which has to take place during the run. The potentials are those
# of Mask R-CNN R-50 on COCO; take the metrics of your models of one task.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper",
    weighting=dict(type="Achievement", potential=dict(detection=0.382, mask=0.347)),
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
