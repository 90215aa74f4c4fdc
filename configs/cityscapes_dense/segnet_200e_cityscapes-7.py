# Paper D, Table 3: SegNet that two tasks share. The schedule is Recon's, with which D compares:
# Adam at 5e-5, batches of 8.
_base_ = ["./data.py", "../_base_/models/segnet.py", "../_base_/schedules/dense_200e.py"]

model = dict(heads=dict(seg=dict(_base_.seg, num_classes=7), depth=_base_.depth))
optim_wrapper = dict(optimizer=dict(lr=5e-5), tasks=dict(seg="seg.*", depth="depth.*"))
