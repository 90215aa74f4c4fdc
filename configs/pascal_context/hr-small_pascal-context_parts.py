# One task alone, parts, the baseline of the small variant.
_base_ = ["./data_small.py", "../_base_/schedules/dense_small.py"]

model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.small_hr,
    heads=dict(
        parts=dict(type="PartsHead", num_classes=7, loss_weight=2.0, decoder=_base_.small_decoder)
    ),
)
optim_wrapper = dict(tasks=dict(parts="parts.*"))
train_dataloader = dict(dataset=dict(fields=["human_parts"]))
val_dataloader = dict(dataset=dict(fields=["human_parts"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.parts_evaluator]
test_evaluator = val_evaluator
