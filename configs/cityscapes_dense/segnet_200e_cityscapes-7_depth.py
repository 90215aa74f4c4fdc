# Baseline of one task for paper D, Table 3: depth.
_base_ = ["./data.py", "../_base_/models/segnet.py", "../_base_/schedules/dense_200e.py"]

model = dict(heads=dict(depth=_base_.depth))
optim_wrapper = dict(optimizer=dict(lr=5e-5), tasks=dict(depth="depth.*"))
train_dataloader = dict(dataset=dict(fields=["depth"]))
val_dataloader = dict(dataset=dict(fields=["depth"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.depth_evaluator]
test_evaluator = val_evaluator
