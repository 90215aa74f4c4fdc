# STA (paper B): each image trains detection or mask, drawn at every step.
_base_ = ["./mask-rcnn_r50_fpn_cityscapes.py"]
train_dataloader = dict(
    batch_sampler=dict(
        _delete_=True,
        type="STABatchSampler",
        tasks=["detection", "mask"],
        tasks_per_sample=1,
        batch_sampler=dict(type="AspectRatioBatchSampler"),
    )
)
# The paper trains half the steps with STA.
train_cfg = dict(max_iters=12000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=False, milestones=[9000], gamma=0.1),
]
