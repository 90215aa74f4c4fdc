# Images of 192 x 144 in batches of four, loaded in the training process.
_base_ = ["./data.py", "../_base_/models/survey_small.py"]

train_pipeline = [
    dict(type="LoadMultiTask"),
    dict(type="MTRandomFlip", prob=0.5),
    dict(type="MTRandomScaleCrop", scales=(1.0, 1.2, 1.5), crop="centre"),
    dict(type="MTResize", scale=(192, 144)),
    dict(type="PackMultiTaskInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="MTResize", scale=(192, 144)),
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
