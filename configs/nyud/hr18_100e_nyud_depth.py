# Baseline of one task for paper D, Table 1: depth.
_base_ = ["./data.py", "../_base_/schedules/dense_100e.py"]

model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.hr18,
    heads=dict(depth=dict(type="DepthHead", decoder=_base_.hr18_decoder)),
)
optim_wrapper = dict(tasks=dict(depth="depth.*"))
train_dataloader = dict(dataset=dict(fields=["depth"]))
val_dataloader = dict(dataset=dict(fields=["depth"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.depth_evaluator]
test_evaluator = val_evaluator
