# Data that the configs of this folder train and test on, see README.md.
import os

data_root = "{{$METAGRASPNET_ROOT:data/metagraspnet}}/"
# Folder that the converter writes.
ann_root = os.path.abspath(os.environ.get("METAGRASPNET_DERIVED", data_root + "annotations")) + "/"

train_set = dict(
    type="MetaGraspNetDataset",
    data_root=data_root,
    ann_file=ann_root + "train.json",
    data_prefix=dict(img=""),
    filter_cfg=dict(filter_empty_gt=True, min_size=32),
)
val_set = dict(
    type="MetaGraspNetDataset",
    data_root=data_root,
    ann_file=ann_root + "val.json",
    data_prefix=dict(img=""),
    test_mode=True,
)
evaluator = dict(type="AmodalMetric", ann_file=ann_root + "val.json")
