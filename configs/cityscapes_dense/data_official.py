# Cityscapes' official folders with 19 classes and disparity in pixels, see README.md.
_base_ = ["../_base_/dense.py", "../_base_/models/survey.py"]

cityscapes_root = "{{$CITYSCAPES_ROOT:data/cityscapes}}"
train_pipeline = [
    dict(type="LoadMultiTask"),
    dict(type="MTRandomFlip", prob=0.5),
    dict(type="MTRandomScaleCrop", scales=(1.0, 1.2, 1.5), crop="random"),
    dict(type="MTResize", scale=(1024, 512)),
    dict(type="PackMultiTaskInputs"),
]
# Labels stay at the size of the file, at which the test compares.
test_pipeline = [
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="MTResize", scale=(1024, 512)),
    dict(type="LoadMultiTask", image=False),
    dict(type="PackMultiTaskInputs"),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="CityscapesDenseDataset",
        data_root=cityscapes_root,
        split="train",
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CityscapesDenseDataset",
        data_root=cityscapes_root,
        split="val",
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

seg_evaluator = dict(type="DenseIoUMetric", task="seg")
depth_evaluator = dict(type="DenseDepthMetric", task="depth", depth_metrics=["abs_err", "rmse"])
val_evaluator = [seg_evaluator, depth_evaluator]
test_evaluator = val_evaluator
