# ISTA (paper B): each image trains detection and mask in turn, in as many steps as the baseline.
_base_ = ["./mask-rcnn_r50_fpn_1x_coco.py"]
train_dataloader = dict(
    batch_sampler=dict(
        _delete_=True,
        type="ISTABatchSampler",
        tasks=["detection", "mask"],
        tasks_per_sample=1,
        same_steps=True,
        batch_sampler=dict(type="AspectRatioBatchSampler"),
    )
)
