# Baseline of one task for paper D, Table 3: segmentation.
_base_ = ["./data.py", "../_base_/models/segnet.py", "../_base_/schedules/dense_200e.py"]

model = dict(heads=dict(seg=dict(_base_.seg, num_classes=7)))
optim_wrapper = dict(optimizer=dict(lr=5e-5), tasks=dict(seg="seg.*"))
train_dataloader = dict(dataset=dict(fields=["sem_seg"]))
val_dataloader = dict(dataset=dict(fields=["sem_seg"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.seg_evaluator]
test_evaluator = val_evaluator
