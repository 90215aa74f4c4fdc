# Cityscapes with 7 classes and inverse depth in MTAN's npy folders, see README.md.
_base_ = ["../_base_/dense.py"]

mtan_root = "{{$CITYSCAPES_MTAN_ROOT:data/cityscapes_mtan}}"
train_pipeline = [
    dict(type="LoadMultiTask"),
    dict(type="MTRandomScaleCrop", scales=(1.0, 1.2, 1.5), crop="random"),
    dict(type="MTRandomFlip", prob=0.5),
    dict(type="PackMultiTaskInputs"),
]
test_pipeline = [dict(type="LoadMultiTask"), dict(type="PackMultiTaskInputs")]
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="MTANCityscapesDataset",
        data_root=mtan_root,
        classes=7,
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
        type="MTANCityscapesDataset",
        data_root=mtan_root,
        classes=7,
        split="val",
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

# Pooled over all pixels. Recon's code, with which paper D compares, averages depth over images,
# which average="image" does.
seg_evaluator = dict(type="DenseIoUMetric", task="seg")
depth_evaluator = dict(type="DenseDepthMetric", task="depth", depth_metrics=["abs_err", "abs_rel"])
val_evaluator = [seg_evaluator, depth_evaluator]
test_evaluator = val_evaluator
