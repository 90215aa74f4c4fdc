# MMDetection's DINO, trained for two tasks. Without --mtl it trains the plain sum.
_base_ = ["mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"]

data_root = "{{$COCO_ROOT:data/coco}}/"
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator

custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper",
    # Losses of all decoder layers (d0., …; none: the last), denoising (dn_) and encoder (enc_).
    tasks=dict(cls="*loss_cls", box=["*loss_bbox", "*loss_iou"]),
    aggregator=dict(type="Sum"),
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
