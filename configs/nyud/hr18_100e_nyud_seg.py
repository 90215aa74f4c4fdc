# Baseline of one task for paper D, Table 1: segmentation.
_base_ = ["./data.py", "../_base_/schedules/dense_100e.py"]

model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.hr18,
    heads=dict(seg=dict(type="SegmentationHead", num_classes=40, decoder=_base_.hr18_decoder)),
)
optim_wrapper = dict(tasks=dict(seg="seg.*"))
train_dataloader = dict(dataset=dict(fields=["sem_seg"]))
val_dataloader = dict(dataset=dict(fields=["sem_seg"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.seg_evaluator]
test_evaluator = val_evaluator
