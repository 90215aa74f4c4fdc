# FCOS and semantic FPN for many trainings of a minute: half the small one's channels, 160 x 120.
_base_ = ["../../../configs/bdd100k/fcos-semfpn_r18-small_bdd100k.py"]

model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[64, 128, 256], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1),
    semantic_head=dict(in_channels=[32, 32, 32], channels=32),
    test_cfg=dict(score_thr=0.0),  # after a short training, scores are low
)
resized = dict(scale=(160, 120))
train_pipeline = [t | resized if t["type"] == "Resize" else t for t in _base_.train_pipeline]
test_pipeline = [t | resized if t["type"] == "Resize" else t for t in _base_.test_pipeline]
train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(**_base_.det_train_pseudo, pipeline=train_pipeline),
            dict(**_base_.seg_train_pseudo, pipeline=train_pipeline),
        ]
    )
)
val_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(**_base_.det_val, pipeline=test_pipeline),
            dict(**_base_.seg_val, pipeline=test_pipeline),
        ]
    )
)
test_dataloader = val_dataloader
val_evaluator = [_base_.det_evaluator, dict(**_base_.seg_evaluator, prefix="seg")]
test_evaluator = val_evaluator
compare = dict(_delete_=True)
