# Data that the configs of this folder put in the place of COCO, with the annotations that
# MMDetection's converter writes, see README.md.
cityscapes_root = "{{$CITYSCAPES_ROOT:data/cityscapes}}/"
cityscapes_train = dict(
    type="CityscapesDataset",
    data_root=cityscapes_root,
    ann_file="annotations/instancesonly_filtered_gtFine_train.json",
    data_prefix=dict(img="leftImg8bit/train/"),
)
cityscapes_val = dict(
    type="CityscapesDataset",
    data_root=cityscapes_root,
    ann_file="annotations/instancesonly_filtered_gtFine_val.json",
    data_prefix=dict(img="leftImg8bit/val/"),
)
cityscapes_evaluator = dict(ann_file=cityscapes_root + cityscapes_val["ann_file"])
cityscapes_heads = dict(bbox_head=dict(num_classes=8), mask_head=dict(num_classes=8))
