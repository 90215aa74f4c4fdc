# FCOS and a semantic FPN head on one ResNet-50 FPN, as in paper A, section 4.1.2: boxes and
# semantic maps on different images, and teachers that label all of them for both tasks.
_base_ = ["mmdet::_base_/default_runtime.py", "./data.py"]

model = dict(
    type="SemanticDetector",
    source_weights=dict(gt=0.8, pseudo=0.2),
    task_weights=dict(det=1.7, seg=0.3),
    data_preprocessor=dict(
        type="PartialDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
    ),
    # FCOS-RT: strides 8, 16 and 32, no more levels above
    neck=dict(type="FPN", in_channels=[512, 1024, 2048], out_channels=256, num_outs=3),
    bbox_head=dict(
        type="FCOSHead",
        num_classes=10,
        in_channels=256,
        feat_channels=256,
        stacked_convs=4,
        strides=[8, 16, 32],
        regress_ranges=((-1, 64), (64, 128), (128, 1e8)),
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        conv_bias=True,
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=1.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    ),
    semantic_head=dict(
        type="mmseg.FPNHead",
        num_classes=19,
        in_channels=[256, 256, 256],
        in_index=[0, 1, 2],
        feature_strides=[8, 16, 32],
        channels=128,
        dropout_ratio=0.0,
        norm_cfg=dict(type="GN", num_groups=32, requires_grad=True),
        align_corners=False,
        loss_decode=[
            dict(type="mmseg.CrossEntropyLoss", avg_non_ignore=True, loss_weight=1.0),
            dict(type="PartialDiceLoss", loss_weight=0.5),
        ],
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type="nms", iou_threshold=0.6),
        max_per_img=100,
    ),
)
sync_bn = "torch"  # norms synchronised over the GPUs, where there are several

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadPartialAnnotations"),
    dict(
        type="RandomChoiceResize",
        scales=[(900, side) for side in range(256, 609, 32)],
        keep_ratio=True,
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackPartialInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(736, 512), keep_ratio=True),
    dict(type="LoadPartialAnnotations"),
    dict(
        type="PackPartialInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="ConcatDataset",
        datasets=[
            dict(**_base_.det_train_pseudo, pipeline=train_pipeline),
            dict(**_base_.seg_train_pseudo, pipeline=train_pipeline),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="ConcatDataset",
        datasets=[
            dict(**_base_.det_val, pipeline=test_pipeline),
            dict(**_base_.seg_val, pipeline=test_pipeline),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = [_base_.det_evaluator, _base_.seg_evaluator]
test_evaluator = val_evaluator

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=30, val_interval=2)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, milestones=[16, 22, 28], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=16)

custom_imports = dict(
    imports=[
        "mtl_plugins.mm",
        "mtl_plugins.mm.datasets",
        "mtl_plugins.mm.evaluation",
        "mtl_plugins.mm.models",
        "mtl_plugins.mm.transforms",
        "mtl_plugins.mm.visualization.partial",
    ]
)
optim_wrapper = dict(
    type="MTLOptimWrapper",
    optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0001, nesterov=True),
    clip_grad=dict(max_norm=10),
    tasks=dict(det="loss_*_det_*", seg="loss_*_seg_*"),
    aggregator=dict(type="Sum"),
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=50)]
visualizer = dict(type="PartialVisualizer")

# Baselines of mtl-compare --single-task.
compare = dict(
    single_task=dict(
        det="./fcos_r50_fpn_30e_bdd100k.py",
        seg="./semfpn_r50_fpn_30e_bdd100k.py",
    )
)
