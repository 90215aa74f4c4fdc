# ISTA (paper B): each image trains detection and mask in turn, in as many steps as the baseline.
_base_ = ["./mask-rcnn_r50_fpn_1x_coco_sta.py"]
train_dataloader = dict(batch_sampler=dict(type="ISTABatchSampler", same_steps=True))
