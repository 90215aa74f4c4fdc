# Paper D, Table 3: Cross-Stitch, a SegNet for each task, joined after each stage.
_base_ = ["./segnet_200e_cityscapes-7.py"]

uniform = dict(init_cfg=dict(distribution="uniform"))
model = dict(
    backbone=dict(type="CrossStitchSegNet", tasks=["seg", "depth"]),
    heads=dict(seg=dict(decoder=uniform), depth=dict(decoder=uniform)),
)
