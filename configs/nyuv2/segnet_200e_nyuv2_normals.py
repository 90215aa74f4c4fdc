# Baseline of one task for paper A's Table 3 and paper B's Table 1: normals.
_base_ = ["./data.py", "../_base_/models/segnet.py", "../_base_/schedules/dense_200e.py"]

model = dict(heads=dict(normals=_base_.normals))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="SGD", lr=0.007, momentum=0.9, weight_decay=1e-4),
    tasks=dict(normals="normals.*"),
)
train_dataloader = dict(dataset=dict(fields=["normals"]))
val_dataloader = dict(dataset=dict(fields=["normals"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.normals_evaluator]
test_evaluator = val_evaluator
