# ISTA (paper B): each image trains detection and mask in turn.
_base_ = ["./mask-rcnn_r50_fpn_cityscapes_sta.py"]
train_dataloader = dict(batch_sampler=dict(type="ISTABatchSampler"))
