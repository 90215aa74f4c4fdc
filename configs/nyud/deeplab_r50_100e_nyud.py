# Paper B, Table 2: ResNet-50 with DeepLab's head for each of segmentation and depth.
_base_ = ["./data.py", "../_base_/schedules/dense_100e.py"]

model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.r50,
    heads=dict(
        seg=dict(type="SegmentationHead", num_classes=40, decoder=_base_.deeplab),
        depth=dict(type="DepthHead", decoder=_base_.deeplab),
    ),
)
optim_wrapper = dict(tasks=dict(seg="seg.*", depth="depth.*"))
train_dataloader = dict(dataset=dict(fields=["sem_seg", "depth"]))
val_dataloader = dict(dataset=dict(fields=["sem_seg", "depth"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.seg_evaluator, _base_.depth_evaluator]
test_evaluator = val_evaluator
