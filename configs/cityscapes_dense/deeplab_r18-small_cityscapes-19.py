# Narrow ResNet-18 with a DeepLab head for each of segmentation and disparity, for two CPU cores.
_base_ = ["./data_official_small.py", "../_base_/schedules/dense_small.py"]

model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.small_r18,
    heads=dict(
        seg=dict(type="SegmentationHead", num_classes=19, decoder=_base_.small_deeplab),
        depth=_base_.small_disparity,
    ),
)
optim_wrapper = dict(tasks=dict(seg="seg.*", depth="depth.*"))
