# ISTA (paper B): each image trains detection and mask in turn.
_base_ = ["./mask-rcnn_r18-small_fpn_cityscapes.py"]
train_dataloader = dict(
    batch_sampler=dict(
        _delete_=True,
        type="ISTABatchSampler",
        tasks=["detection", "mask"],
        tasks_per_sample=1,
        batch_sampler=dict(type="AspectRatioBatchSampler"),
    )
)
