# One task alone, saliency, the baseline of the small variant.
_base_ = ["./data_small.py", "../_base_/schedules/dense_small.py"]

model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.small_hr,
    heads=dict(sal=dict(type="SaliencyHead", loss_weight=5.0, decoder=_base_.small_decoder)),
)
optim_wrapper = dict(tasks=dict(sal="sal.*"))
train_dataloader = dict(dataset=dict(fields=["saliency"]))
val_dataloader = dict(dataset=dict(fields=["saliency"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.sal_evaluator]
test_evaluator = val_evaluator
