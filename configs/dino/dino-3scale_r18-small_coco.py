# A DINO that trains on two CPU cores: R-18 with GroupNorm, 64 channels, 320 x 240.
_base_ = ["./dino-4scale_r50_8xb2-12e_coco.py"]

channels, levels, layers = 64, 3, 3
self_attention = dict(embed_dims=channels, num_levels=levels)
ffn = dict(embed_dims=channels, feedforward_channels=128)
model = dict(
    num_queries=100,
    backbone=dict(
        depth=18,
        frozen_stages=-1,
        norm_cfg=dict(_delete_=True, type="GN", num_groups=32),
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[128, 256, 512], out_channels=channels, num_outs=levels),
    encoder=dict(num_layers=layers, layer_cfg=dict(self_attn_cfg=self_attention, ffn_cfg=ffn)),
    decoder=dict(
        num_layers=layers,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=channels), cross_attn_cfg=self_attention, ffn_cfg=ffn
        ),
    ),
    positional_encoding=dict(num_feats=channels // 2),
    bbox_head=dict(embed_dims=channels),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=20)),
    test_cfg=dict(max_per_img=100),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(320, 240), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(320, 240), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **loader,
    batch_size=2,
    sampler=dict(_delete_=True, type="InfiniteSampler", shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(**loader, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

max_iters = 450
train_cfg = dict(
    _delete_=True, type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=1e-5, by_epoch=False),
]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=5e-4, weight_decay=1e-4, fused=True),
    paramwise_cfg=dict(_delete_=True),
)

default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(by_epoch=False, interval=max_iters, max_keep_ckpts=1)
)
log_processor = dict(by_epoch=False, window_size=10)
