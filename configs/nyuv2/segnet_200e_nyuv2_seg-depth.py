# Paper B, Table 1: SegNet with the tasks segmentation and depth. The paper's schedule is in a
# supplement that was not at hand; this one is that of segnet_200e_nyuv2.py with Adam. The numbers
# of the table are not those of this protocol either: its single tasks have 54.71 mIoU, MTAN's 38.
_base_ = ["./data.py", "../_base_/models/segnet.py", "../_base_/schedules/dense_200e.py"]

model = dict(heads=dict(seg=_base_.seg, depth=_base_.depth))
optim_wrapper = dict(tasks=dict(seg="seg.*", depth="depth.*"))
train_dataloader = dict(dataset=dict(fields=["sem_seg", "depth"]))
val_dataloader = dict(dataset=dict(fields=["sem_seg", "depth"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.seg_evaluator, _base_.depth_evaluator]
test_evaluator = val_evaluator

# Baselines of mtl-compare --single-task.
compare = dict(
    single_task=dict(
        seg="./segnet_200e_nyuv2_seg.py",
        depth="./segnet_200e_nyuv2_depth.py",
    )
)
