# Baseline of one task for paper A, Table 3, and paper B, Table 1: segmentation. Paper A compares
# with baselines that were trained by Adam, and does not give the learning rate; this is that of the
# code it names.
_base_ = ["./data.py", "../_base_/models/segnet.py", "../_base_/schedules/dense_200e.py"]

model = dict(heads=dict(seg=_base_.seg))
optim_wrapper = dict(tasks=dict(seg="seg.*"))
train_dataloader = dict(dataset=dict(fields=["sem_seg"]))
val_dataloader = dict(dataset=dict(fields=["sem_seg"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.seg_evaluator]
test_evaluator = val_evaluator
