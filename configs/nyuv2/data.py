# NYUv2 with 13 classes in MTAN's npy folders, see README.md.
_base_ = ["../_base_/dense.py"]

nyuv2_root = "{{$NYUV2_ROOT:data/nyuv2}}"
train_pipeline = [
    dict(type="LoadMultiTask"),
    dict(type="MTRandomScaleCrop", scales=(1.0, 1.2, 1.5), crop="random"),
    dict(type="MTRandomFlip", prob=0.5),
    dict(type="PackMultiTaskInputs"),
]
test_pipeline = [dict(type="LoadMultiTask"), dict(type="PackMultiTaskInputs")]
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="MTANNYUv2Dataset", data_root=nyuv2_root, split="train", pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="MTANNYUv2Dataset",
        data_root=nyuv2_root,
        split="val",
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

# Pooled over all pixels. The published code averages depth and normals over batches of two images,
# which average=2 does.
seg_evaluator = dict(type="DenseIoUMetric", task="seg")
depth_evaluator = dict(
    type="DenseDepthMetric", task="depth", depth_metrics=["abs_err", "abs_rel", "rmse"]
)
normals_evaluator = dict(type="NormalMetric", task="normals")
val_evaluator = [seg_evaluator, depth_evaluator, normals_evaluator]
test_evaluator = val_evaluator
