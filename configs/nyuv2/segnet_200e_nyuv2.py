# SegNet that three tasks share. Paper A's schedule: SGD at 0.007. Batch and epochs are those of the
# code that the paper names, with which the pacing of its Table 1 agrees; the paper does not say.
_base_ = ["./data.py", "../_base_/models/segnet.py", "../_base_/schedules/dense_200e.py"]

model = dict(heads=dict(seg=_base_.seg, depth=_base_.depth, normals=_base_.normals))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="SGD", lr=0.007, momentum=0.9, weight_decay=1e-4),
    tasks=dict(seg="seg.*", depth="depth.*", normals="normals.*"),
)
