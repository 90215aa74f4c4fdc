# One task alone, segmentation, the baseline of the small variants.
_base_ = [
    "./data_small.py",
    "../_base_/models/segnet_small.py",
    "../_base_/schedules/dense_small.py",
]

model = dict(heads=dict(seg=_base_.seg))
optim_wrapper = dict(tasks=dict(seg="seg.*"))
train_dataloader = dict(dataset=dict(fields=["sem_seg"]))
val_dataloader = dict(dataset=dict(fields=["sem_seg"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.seg_evaluator]
test_evaluator = val_evaluator
