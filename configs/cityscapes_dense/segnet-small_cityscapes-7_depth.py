# One task alone, depth, the baseline of the small variants.
_base_ = [
    "./data_small.py",
    "../_base_/models/segnet_small.py",
    "../_base_/schedules/dense_small.py",
]

model = dict(heads=dict(depth=_base_.inverse_depth))
optim_wrapper = dict(tasks=dict(depth="depth.*"))
train_dataloader = dict(dataset=dict(fields=["depth"]))
val_dataloader = dict(dataset=dict(fields=["depth"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.depth_evaluator]
test_evaluator = val_evaluator
