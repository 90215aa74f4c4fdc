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
        tasks=dict(seg=40, depth=1, normals=3),
        auxiliary_tasks=dict(edges=1),
    ),
    # The weights that the survey found by hand
    heads=dict(
        seg=dict(type="SegmentationHead", num_classes=40, decoder=decoder, loss_weight=1.0),
        depth=dict(type="DepthHead", decoder=decoder, loss_weight=1.0),
        normals=dict(
            type="NormalHead",
            decoder=decoder,
            loss=dict(type="NormalLoss", mode="l1"),
            loss_weight=10.0,
        ),
        edges=dict(type="EdgeHead", decoder=None, loss_weight=50.0),
    ),
)
optim_wrapper = dict(tasks=dict(seg="seg.*", depth="depth.*", normals="normals.*", edges="edges.*"))
val_evaluator = [_base_.seg_evaluator, _base_.depth_evaluator, _base_.normals_evaluator]
test_evaluator = val_evaluator

# Baselines of mtl-compare --single-task.
compare = dict(
    single_task=dict(
        seg="./hr-small_nyud_seg.py",
        depth="./hr-small_nyud_depth.py",
        normals="./hr-small_nyud_normals.py",
    )
)
