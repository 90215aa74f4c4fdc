# MMDetection's Mask R-CNN, trained for two tasks. Without --mtl it trains the plain sum.
_base_ = ["mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"]

data_root = "{{$COCO_ROOT:data/coco}}/"
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator

custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper",
    tasks=dict(detection=["loss_rpn_*", "loss_cls", "loss_bbox"], mask="loss_mask"),
    aggregator=dict(type="Sum"),
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
