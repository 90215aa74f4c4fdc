# One task alone, disparity, the baseline of the small variants.
_base_ = ["./data_official_small.py", "../_base_/schedules/dense_small.py"]

model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.small_r18,
    heads=dict(depth=_base_.small_disparity),
)
optim_wrapper = dict(tasks=dict(depth="depth.*"))
train_dataloader = dict(dataset=dict(fields=["depth"]))
val_dataloader = dict(dataset=dict(fields=["depth"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.depth_evaluator]
test_evaluator = val_evaluator
