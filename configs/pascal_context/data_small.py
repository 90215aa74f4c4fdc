# Images of 160 x 160 in batches of four, loaded in the training process.
_base_ = ["./data.py", "../_base_/models/survey_small.py"]

train_pipeline = [
    dict(type="LoadMultiTask"),
    dict(type="MTRandomFlip", prob=0.5),
    dict(type="MTRotate", degrees=20, scales=(0.75, 1.25)),
    dict(type="MTResize", scale=(160, 160)),
    dict(type="PackMultiTaskInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="MTResize", scale=(160, 160)),
    dict(type="LoadMultiTask", image=False),
    dict(type="PackMultiTaskInputs"),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_delete_=True, type="InfiniteSampler", shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

sync_bn = None  # PyTorch synchronises norms on GPUs alone
