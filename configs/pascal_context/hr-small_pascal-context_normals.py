# One task alone, normals, the baseline of the small variant.
_base_ = ["./data_small.py", "../_base_/schedules/dense_small.py"]

model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.small_hr,
    heads=dict(
        normals=dict(
            type="NormalHead",
            loss=dict(type="NormalLoss", mode="l1"),
            loss_weight=10.0,
            decoder=_base_.small_decoder,
        )
    ),
)
optim_wrapper = dict(tasks=dict(normals="normals.*"))
train_dataloader = dict(dataset=dict(fields=["normals"]))
val_dataloader = dict(dataset=dict(fields=["normals"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.normals_evaluator]
test_evaluator = val_evaluator
