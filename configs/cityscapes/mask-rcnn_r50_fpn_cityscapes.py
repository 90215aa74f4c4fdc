# Mask R-CNN on Cityscapes, with Detectron2's default schedule as in the paper on STA and ISTA.
_base_ = ["../mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", "./data.py"]

# Detectron2 freezes the affine part of the backbone's BatchNorm, too.
model = dict(
    backbone=dict(norm_cfg=dict(requires_grad=False), init_cfg=None),
    roi_head=_base_.cityscapes_heads,
)
# Detectron2 starts from its COCO weights of the 3x schedule; these are MMDetection's of that.
load_from = "https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/mask_rcnn_r50_fpn_mstrain-poly_3x_coco/mask_rcnn_r50_fpn_mstrain-poly_3x_coco_20210524_201154-21b550bb.pth"  # noqa: E501

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        type="RandomChoiceResize",
        scales=[(2048, side) for side in range(800, 1025, 32)],
        keep_ratio=True,
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 1024), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(
    batch_size=1,
    sampler=dict(_delete_=True, type="InfiniteSampler", shuffle=True),
    dataset=dict(**_base_.cityscapes_train, pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(**_base_.cityscapes_val, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = _base_.cityscapes_evaluator
test_evaluator = val_evaluator

# For 8 images a step: 8 GPUs with one each.
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=24000, val_interval=8000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=False, milestones=[18000], gamma=0.1),
]
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=8)

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2000, max_keep_ckpts=2))
log_processor = dict(by_epoch=False)
