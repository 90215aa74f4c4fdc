# MMDetection's Mask2Former, trained for two tasks. Without --mtl it trains the plain sum.
_base_ = ["mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py"]

data_root = "{{$COCO_ROOT:data/coco}}/"
# Instances need no panoptic maps, so the prefix that the base has for them goes.
train_images = dict(_delete_=True, img="train2017/")
val_images = dict(_delete_=True, img="val2017/")
train_dataloader = dict(dataset=dict(data_root=data_root, data_prefix=train_images))
val_dataloader = dict(dataset=dict(data_root=data_root, data_prefix=val_images))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator

custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper",
    # Losses of all decoder layers (d0., …; those of the last layer have no prefix).
    tasks=dict(cls="*loss_cls", mask=["*loss_mask", "*loss_dice"]),
    aggregator=dict(type="Sum"),
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
