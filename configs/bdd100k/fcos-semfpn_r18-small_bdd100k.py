# FCOS and semantic FPN for two CPU cores: R-18 with GroupNorm, 64 channels, 320 x 240.
_base_ = ["./fcos-semfpn_r50_fpn_30e_bdd100k.py"]

norm_cfg = dict(type="GN", num_groups=32, requires_grad=True)
model = dict(
    backbone=dict(depth=18, frozen_stages=-1, norm_cfg=norm_cfg, init_cfg=None),
    neck=dict(in_channels=[128, 256, 512], out_channels=64, norm_cfg=norm_cfg),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=2),
    semantic_head=dict(in_channels=[64, 64, 64], channels=64),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadPartialAnnotations"),
    dict(type="Resize", scale=(320, 240), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackPartialInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(320, 240), keep_ratio=True),
    dict(type="LoadPartialAnnotations"),
    dict(
        type="PackPartialInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **loader,
    batch_size=4,
    sampler=dict(_delete_=True, type="InfiniteSampler", shuffle=True),
    dataset=dict(
        datasets=[
            dict(**_base_.det_train_pseudo, pipeline=train_pipeline),
            dict(**_base_.seg_train_pseudo, pipeline=train_pipeline),
        ]
    ),
)
val_dataloader = dict(
    **loader,
    dataset=dict(
        datasets=[
            dict(**_base_.det_val, pipeline=test_pipeline),
            dict(**_base_.seg_val, pipeline=test_pipeline),
        ]
    ),
)
test_dataloader = val_dataloader

max_iters = 400
train_cfg = dict(
    _delete_=True, type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=1e-5, by_epoch=False),
]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-3, weight_decay=1e-4, fused=True)
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]

default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(by_epoch=False, interval=max_iters, max_keep_ckpts=1)
)
log_processor = dict(by_epoch=False, window_size=10)

# Baselines of mtl-compare --single-task.
compare = dict(
    single_task=dict(
        det="./fcos_r18-small_bdd100k.py",
        seg="./semfpn_r18-small_bdd100k.py",
    )
)
