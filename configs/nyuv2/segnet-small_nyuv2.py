# Narrow SegNet that three tasks share, for two CPU cores.
_base_ = [
    "./data_small.py",
    "../_base_/models/segnet_small.py",
    "../_base_/schedules/dense_small.py",
]

model = dict(heads=dict(seg=_base_.seg, depth=_base_.depth, normals=_base_.normals))
optim_wrapper = dict(tasks=dict(seg="seg.*", depth="depth.*", normals="normals.*"))
