# Narrow SegNet that two tasks share, for two CPU cores.
_base_ = [
    "./data_small.py",
    "../_base_/models/segnet_small.py",
    "../_base_/schedules/dense_small.py",
]

model = dict(heads=dict(seg=dict(_base_.seg, num_classes=7), depth=_base_.inverse_depth))
optim_wrapper = dict(tasks=dict(seg="seg.*", depth="depth.*"))
