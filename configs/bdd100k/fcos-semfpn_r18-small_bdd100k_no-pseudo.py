# No teacher: each image trains the one task that it is labelled for.
_base_ = ["./fcos-semfpn_r18-small_bdd100k.py"]

model = dict(source_weights=dict(_delete_=True, gt=1.0))
train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(**_base_.det_train, pipeline=_base_.train_pipeline),
            dict(**_base_.seg_train, pipeline=_base_.train_pipeline),
        ]
    )
)
