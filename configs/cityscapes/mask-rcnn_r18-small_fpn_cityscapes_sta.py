# STA (paper B): each image trains detection or mask, drawn at every step.
_base_ = ["./mask-rcnn_r18-small_fpn_cityscapes.py"]
train_dataloader = dict(
    batch_sampler=dict(
        _delete_=True,
        type="STABatchSampler",
        tasks=["detection", "mask"],
        tasks_per_sample=1,
        batch_sampler=dict(type="AspectRatioBatchSampler"),
    )
)
