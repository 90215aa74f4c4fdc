# One task alone, normals, the baseline of the small variants.
_base_ = [
    "./data_small.py",
    "../_base_/models/segnet_small.py",
    "../_base_/schedules/dense_small.py",
]

model = dict(heads=dict(normals=_base_.normals))
optim_wrapper = dict(tasks=dict(normals="normals.*"))
train_dataloader = dict(dataset=dict(fields=["normals"]))
val_dataloader = dict(dataset=dict(fields=["normals"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.normals_evaluator]
test_evaluator = val_evaluator
