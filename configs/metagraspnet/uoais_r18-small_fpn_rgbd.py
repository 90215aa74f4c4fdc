# UOAIS-Net for two CPU cores: narrow, with GroupNorm before the heads, at 320 x 240.
_base_ = ["./uoais_r18_fpn_rgbd.py"]

norm_cfg = dict(type="GN", num_groups=32, requires_grad=True)
head = dict(in_channels=64, conv_out_channels=32)
model = dict(
    backbone=dict(
        base_channels=32,
        frozen_stages=-1,
        norm_cfg=norm_cfg,
        norm_eval=False,
        fusion_norm_cfg=norm_cfg,
        init_cfg=None,
        depth_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, conv_out_channels=64),
        mask_roi_extractor=dict(out_channels=64),
        visible_mask_head=head,
        mask_head=head,
        occlusion_head=head,
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=64))
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)

depth_range = (50, 250)  # centimetres, where the drawn scenes have objects
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="PhotoMetricDistortion"),
    dict(type="LoadDepth", depth_range=depth_range),
    dict(type="LoadAmodalAnnotations"),
    dict(type="Resize", scale=(320, 240), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackAmodalInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadDepth", depth_range=depth_range),
    dict(type="Resize", scale=(320, 240), keep_ratio=True),
    dict(type="LoadAmodalAnnotations"),
    dict(
        type="PackAmodalInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(**loader, batch_size=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(**loader, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

max_iters = 400
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=1e-5, by_epoch=False),
]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-3, weight_decay=1e-4, fused=True),
    paramwise_cfg=None,
    clip_grad=dict(_delete_=True, max_norm=10),
)

default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=max_iters, max_keep_ckpts=1)
)
log_processor = dict(window_size=10)
