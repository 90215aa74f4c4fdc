# One task alone, segmentation, the baseline of the small variants.
_base_ = ["./data_official_small.py", "../_base_/schedules/dense_small.py"]

model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.small_r18,
    heads=dict(seg=dict(type="SegmentationHead", num_classes=19, decoder=_base_.small_deeplab)),
)
optim_wrapper = dict(tasks=dict(seg="seg.*"))
train_dataloader = dict(dataset=dict(fields=["sem_seg"]))
val_dataloader = dict(dataset=dict(fields=["sem_seg"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.seg_evaluator]
test_evaluator = val_evaluator
