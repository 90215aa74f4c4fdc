# NYUv2 with 40 classes: the survey's folder NYUD_MT, see README.md.
_base_ = ["../_base_/dense.py", "../_base_/models/survey.py"]

nyud_root = "{{$NYUD_ROOT:data/NYUD_MT}}"
train_pipeline = [
    dict(type="LoadMultiTask"),
    dict(type="MTRandomFlip", prob=0.5),
    dict(type="MTRandomScaleCrop", scales=(1.0, 1.2, 1.5), crop="centre", interpolation="bicubic"),
    dict(type="MTResize", scale=(640, 480), interpolation="bicubic"),
    dict(type="PackMultiTaskInputs"),
]
# Labels stay at the size of the file, at which the test compares.
test_pipeline = [
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="MTResize", scale=(640, 480), interpolation="bicubic"),
    dict(type="LoadMultiTask", image=False),
    dict(type="PackMultiTaskInputs"),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="NYUDMTDataset", data_root=nyud_root, split="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="NYUDMTDataset",
        data_root=nyud_root,
        split="val",
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

# Pooled over all pixels, as the survey does.
seg_evaluator = dict(type="DenseIoUMetric", task="seg", nan_to_num=0)
depth_evaluator = dict(type="DenseDepthMetric", task="depth", depth_metrics=["rmse", "abs_rel"])
normals_evaluator = dict(type="NormalMetric", task="normals")
