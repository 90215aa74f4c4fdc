# Narrow ResNet-18 with a DeepLab head for each of segmentation and disparity, for two CPU cores.
_base_ = ["./data_official_small.py", "../_base_/schedules/dense_small.py"]

model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.r18_small,
    heads=dict(
        seg=dict(type="SegmentationHead", num_classes=19, decoder=_base_.deeplab_small),
        depth=dict(type="DepthHead", decoder=_base_.deeplab_small),
    ),
)
optim_wrapper = dict(tasks=dict(seg="seg.*", depth="depth.*"))
