# Data that the configs of this folder train and test on, see README.md.
bdd100k_root = "{{$BDD100K_ROOT:data/bdd100k}}/"  # the official folders
bdd100k_derived = "{{$BDD100K_DERIVED:data/bdd100k_derived}}/"  # written by our tools

# Boxes on the images of images/100k, semantic maps on those of images/10k.
det_train = dict(
    type="BDD100KDataset",
    data_root="",
    ann_file=bdd100k_derived + "det_train.json",
    data_prefix=dict(img=bdd100k_root + "images/100k/train"),
)
seg_train = dict(
    type="BDD100KDataset",
    data_root="",
    ann_file=bdd100k_derived + "sem_seg_train.json",
    boxes=False,
    data_prefix=dict(
        img=bdd100k_root + "images/10k/train", seg=bdd100k_root + "labels/sem_seg/masks/train"
    ),
)
det_val = dict(
    type="BDD100KDataset",
    data_root="",
    ann_file=bdd100k_derived + "det_val.json",
    data_prefix=dict(img=bdd100k_root + "images/100k/val"),
    test_mode=True,
)
seg_val = dict(
    type="BDD100KDataset",
    data_root="",
    ann_file=bdd100k_derived + "sem_seg_val.json",
    boxes=False,
    data_prefix=dict(
        img=bdd100k_root + "images/10k/val", seg=bdd100k_root + "labels/sem_seg/masks/val"
    ),
    test_mode=True,
)

# Both sources with labels of teachers, written by tools/pseudo_label.py: for both tasks ...
det_train_pseudo = dict(
    det_train,
    pseudo_ann_file=bdd100k_derived + "pseudo/det_train.json",
    data_prefix=dict(**det_train["data_prefix"], pseudo_seg=bdd100k_derived + "pseudo/det_train"),
)
seg_train_pseudo = dict(
    seg_train,
    pseudo_ann_file=bdd100k_derived + "pseudo/sem_seg_train.json",
    data_prefix=dict(
        **seg_train["data_prefix"], pseudo_seg=bdd100k_derived + "pseudo/sem_seg_train"
    ),
)
# ... or only for the task that an image has no label for.
det_train_missing = dict(det_train, data_prefix=det_train_pseudo["data_prefix"])
seg_train_missing = dict(seg_train, pseudo_ann_file=seg_train_pseudo["pseudo_ann_file"])

det_evaluator = dict(
    type="PartialCocoMetric", ann_file=bdd100k_derived + "det_val.json", metric="bbox"
)
seg_evaluator = dict(type="PartialSemSegMetric", iou_metrics=["mIoU"])
