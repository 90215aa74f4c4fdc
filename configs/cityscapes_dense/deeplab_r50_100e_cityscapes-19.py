# Paper B, Table 3: ResNet-50 with DeepLab's head for each of segmentation and disparity. The paper
# says neither the schedule nor the size of the images; the schedule is the survey's for NYUv2.
_base_ = ["./data_official.py", "../_base_/schedules/dense_100e.py"]

model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.r50,
    heads=dict(
        seg=dict(type="SegmentationHead", num_classes=19, decoder=_base_.deeplab),
        depth=dict(type="DepthHead", decoder=_base_.deeplab),
    ),
)
optim_wrapper = dict(tasks=dict(seg="seg.*", depth="depth.*"))
