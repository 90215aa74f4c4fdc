# Teachers label an image only for the task that it has no label for.
_base_ = ["./fcos-semfpn_r50_fpn_30e_bdd100k.py"]

train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(**_base_.det_train_missing, pipeline=_base_.train_pipeline),
            dict(**_base_.seg_train_missing, pipeline=_base_.train_pipeline),
        ]
    )
)
