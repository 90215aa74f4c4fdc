# MTI-Net on a narrow HRNet from scratch, for two CPU cores.
_base_ = ["./data_small.py", "../_base_/schedules/dense_small.py"]

decoder = _base_.small_decoder
model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.small_hr,
    neck=dict(
        type="MTINet",
        in_channels=_base_.small_channels,
        tasks=dict(seg=21, parts=7, sal=1, normals=3),
        auxiliary_tasks=dict(edges=1),
    ),
    # The weights that the survey found by hand
    heads=dict(
        seg=dict(type="SegmentationHead", num_classes=21, decoder=decoder, loss_weight=1.0),
        parts=dict(type="PartsHead", num_classes=7, decoder=decoder, loss_weight=2.0),
        sal=dict(type="SaliencyHead", decoder=decoder, loss_weight=5.0),
        normals=dict(
            type="NormalHead",
            decoder=decoder,
            loss=dict(type="NormalLoss", mode="l1"),
            loss_weight=10.0,
        ),
        edges=dict(type="EdgeHead", decoder=None, loss_weight=50.0),
    ),
)
optim_wrapper = dict(
    tasks=dict(seg="seg.*", parts="parts.*", sal="sal.*", normals="normals.*", edges="edges.*")
)
val_evaluator = [
    _base_.seg_evaluator,
    _base_.parts_evaluator,
    _base_.sal_evaluator,
    _base_.normals_evaluator,
]
test_evaluator = val_evaluator

# Baselines of mtl-compare --single-task.
compare = dict(
    single_task=dict(
        seg="./hr-small_pascal-context_seg.py",
        parts="./hr-small_pascal-context_parts.py",
        sal="./hr-small_pascal-context_sal.py",
        normals="./hr-small_pascal-context_normals.py",
    )
)
