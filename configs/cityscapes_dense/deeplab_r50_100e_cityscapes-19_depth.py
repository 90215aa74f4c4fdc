# Baseline of one task for paper B, Table 3: disparity.
_base_ = ["./data_official.py", "../_base_/schedules/dense_100e.py"]

model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.r50,
    heads=dict(depth=dict(type="DepthHead", decoder=_base_.deeplab)),
)
optim_wrapper = dict(tasks=dict(depth="depth.*"))
train_dataloader = dict(dataset=dict(fields=["depth"]))
val_dataloader = dict(dataset=dict(fields=["depth"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.depth_evaluator]
test_evaluator = val_evaluator
