# UOAIS-Net on RGB-D images as paper C trains it (section 3): two ResNet-18, seven losses, seven
# tasks. Without --mtl it is the paper's baseline, their sum.
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/default_runtime.py",
    "./data.py",
]

custom_imports = dict(
    imports=[
        "mtl_plugins.mm",
        "mtl_plugins.mm.datasets",
        "mtl_plugins.mm.evaluation",
        "mtl_plugins.mm.models",
        "mtl_plugins.mm.transforms",
        "mtl_plugins.mm.visualization.amodal",
    ]
)
model = dict(
    data_preprocessor=dict(
        type="RGBDDataPreprocessor",
        mean=[123.675, 116.28, 103.53, 127.5],
        std=[58.395, 57.12, 57.375, 57.375],
    ),
    backbone=dict(
        _delete_=True,
        type="RGBDResNet",
        depth=18,
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        fusion_norm_cfg=dict(type="SyncBN"),  # plain BatchNorm in one process
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18"),
        # From scratch, as UOAIS-Net; a residual branch whose frozen norm is 0 would stay 0.
        depth_cfg=dict(init_cfg=None, zero_init_residual=False),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
    rpn_head=dict(anchor_generator=dict(scales=[4])),  # 16 to 256 pixels
    roi_head=dict(
        type="UOAISRoIHead",
        bbox_head=dict(
            _delete_=True,
            type="ConvFCBBoxHead",
            num_shared_convs=4,
            in_channels=256,
            conv_out_channels=256,
            roi_feat_size=7,
            num_classes=1,
            reg_class_agnostic=True,
            bbox_coder=dict(
                type="DeltaXYWHBBoxCoder",
                target_means=[0.0, 0.0, 0.0, 0.0],
                target_stds=[0.1, 0.1, 0.2, 0.2],
            ),
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        visible_mask_head=dict(type="HierarchicalMaskHead"),
        mask_head=dict(_delete_=True, type="HierarchicalMaskHead"),
        occlusion_head=dict(type="HierarchicalOcclusionHead"),
    ),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=False))),
)

# Range of UOAIS-Net, in centimetres. Set the range in which your camera sees objects.
depth_range = (25, 150)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="PhotoMetricDistortion"),  # first, since it takes images without depth
    dict(type="LoadDepth", depth_range=depth_range),
    dict(type="LoadAmodalAnnotations"),
    dict(
        type="RandomApply",
        transforms=[
            dict(
                type="RandomCrop",
                crop_size=(0.5, 0.5),
                crop_type="relative_range",
                recompute_bbox=True,
            )
        ],
        prob=0.5,
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(type="Resize", scale=(640, 480), keep_ratio=True),
    dict(type="PackAmodalInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadDepth", depth_range=depth_range),
    dict(type="Resize", scale=(640, 480), keep_ratio=True),
    dict(type="LoadAmodalAnnotations"),
    dict(
        type="PackAmodalInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=8,  # a large image with twenty objects takes 0.4 s to load
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(**_base_.train_set, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**_base_.val_set, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = _base_.evaluator
test_evaluator = val_evaluator
visualizer = dict(type="AmodalVisualizer")

# Schedule of UOAIS-Net, since the paper gives none.
max_iters = 90000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=5000),
    dict(type="MultiStepLR", by_epoch=False, milestones=[60000, 80000], gamma=0.1),
]
optim_wrapper = dict(
    type="MTLOptimWrapper",
    optimizer=dict(type="SGD", lr=0.00125, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0),
    clip_grad=dict(type="value", clip_value=1.0),
    tasks=dict(
        rpn_cls="loss_rpn_cls",
        rpn_box="loss_rpn_bbox",
        cls="loss_cls",
        box="loss_bbox",
        visible="loss_visible_mask",
        amodal="loss_amodal_mask",
        occlusion="loss_occlusion",
    ),
    aggregator=dict(type="Sum"),
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=10000))
log_processor = dict(by_epoch=False)
auto_scale_lr = dict(base_batch_size=2)
