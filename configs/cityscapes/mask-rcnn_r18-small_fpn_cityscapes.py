# The Mask R-CNN that trains on two CPU cores, on Cityscapes' layout and classes.
_base_ = ["../mask_rcnn/mask-rcnn_r18-small_fpn_coco.py", "./data.py"]

model = dict(roi_head=_base_.cityscapes_heads)
train_dataloader = dict(dataset=_base_.cityscapes_train)
val_dataloader = dict(dataset=_base_.cityscapes_val)
test_dataloader = val_dataloader
val_evaluator = _base_.cityscapes_evaluator
test_evaluator = val_evaluator
