# One task alone, depth, the baseline of the small variant.
_base_ = ["./data_small.py", "../_base_/schedules/dense_small.py"]

model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.small_hr,
    heads=dict(depth=dict(type="DepthHead", decoder=_base_.small_decoder)),
)
optim_wrapper = dict(tasks=dict(depth="depth.*"))
train_dataloader = dict(dataset=dict(fields=["depth"]))
val_dataloader = dict(dataset=dict(fields=["depth"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.depth_evaluator]
test_evaluator = val_evaluator
