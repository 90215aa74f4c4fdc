# PASCAL-Context with the survey's five tasks: the folder PASCAL_MT, see README.md.
_base_ = ["../_base_/dense.py", "../_base_/models/survey.py"]

pascal_root = "{{$PASCAL_ROOT:data/PASCAL_MT}}"
train_pipeline = [
    dict(type="LoadMultiTask"),
    dict(type="MTRandomFlip", prob=0.5),
    dict(type="MTRotate", degrees=20, scales=(0.75, 1.25), interpolation="bicubic"),
    dict(type="MTResize", scale=(512, 512), interpolation="bicubic"),
    dict(type="PackMultiTaskInputs"),
]
# Labels stay at the size of the file, at which the test compares.
test_pipeline = [
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="MTResize", scale=(512, 512), interpolation="bicubic"),
    dict(type="LoadMultiTask", image=False),
    dict(type="PackMultiTaskInputs"),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="PASCALMTDataset", data_root=pascal_root, split="train", pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="PASCALMTDataset",
        data_root=pascal_root,
        split="val",
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

# Pooled over all pixels, saliency per image, as the survey does.
seg_evaluator = dict(type="DenseIoUMetric", task="seg", nan_to_num=0)
parts_evaluator = dict(type="DenseIoUMetric", field="human_parts", task="parts", nan_to_num=0)
sal_evaluator = dict(type="SaliencyMetric", task="sal")
normals_evaluator = dict(type="NormalMetric", task="normals")
