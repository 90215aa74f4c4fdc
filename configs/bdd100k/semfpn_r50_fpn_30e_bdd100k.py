# Segmentation alone: the single-task model of paper A, and the teacher that draws pseudo maps.
_base_ = ["./fcos-semfpn_r50_fpn_30e_bdd100k.py"]

model = dict(bbox_head=None, source_weights=dict(_delete_=True, gt=1.0), task_weights=None)
train_dataloader = dict(
    dataset=dict(_delete_=True, **_base_.seg_train, pipeline=_base_.train_pipeline)
)
val_dataloader = dict(dataset=dict(_delete_=True, **_base_.seg_val, pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
val_evaluator = [_base_.seg_evaluator]
test_evaluator = val_evaluator
optim_wrapper = dict(tasks=dict(_delete_=True, seg="loss_gt_seg_*"))
