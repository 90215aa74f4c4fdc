# What the configs of this folder train and test on, see README.md.
data_root = "{{$METAGRASPNET_ROOT:data/metagraspnet}}/"
ann_root = data_root + "annotations/"  # what the converter writes

train_set = dict(
    type="MetaGraspNetDataset",
    data_root=data_root,
    ann_file="annotations/train.json",
    data_prefix=dict(img=""),
    filter_cfg=dict(filter_empty_gt=True, min_size=32),
)
val_set = dict(
    type="MetaGraspNetDataset",
    data_root=data_root,
    ann_file="annotations/val.json",
    data_prefix=dict(img=""),
    test_mode=True,
)
evaluator = dict(type="AmodalMetric", ann_file=ann_root + "val.json")
