# Baseline of one task for paper D, Table 2: normals, with the schedule of the survey.
_base_ = ["./data.py", "../_base_/schedules/dense_60e.py"]

model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.hr18,
    heads=dict(
        normals=dict(
            type="NormalHead",
            loss=dict(type="NormalLoss", mode="l1"),
            loss_weight=10.0,
            decoder=_base_.hr18_decoder,
        )
    ),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4),
    tasks=dict(normals="normals.*"),
)
train_dataloader = dict(dataset=dict(fields=["normals"]))
val_dataloader = dict(dataset=dict(fields=["normals"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.normals_evaluator]
test_evaluator = val_evaluator
