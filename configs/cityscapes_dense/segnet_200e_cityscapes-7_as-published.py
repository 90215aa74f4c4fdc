# The same with the augmentation of the published code, which divides inverse depth by the zoom, as
# if it were metres; a zoom makes inverse depth larger.
_base_ = ["./segnet_200e_cityscapes-7.py"]

train_pipeline = [
    dict(type="LoadMultiTask"),
    dict(type="MTRandomScaleCrop", scales=(1.0, 1.2, 1.5), crop="random", depth="as_published"),
    dict(type="MTRandomFlip", prob=0.5),
    dict(type="PackMultiTaskInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
