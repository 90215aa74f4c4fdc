# Paper D, Table 1: MTI-Net on HRNet-18. Segmentation, depth and normals are evaluated; edges only
# supervise and help, at every scale, and have no head. The paper gives neither epochs, batch nor
# learning rate; these are the survey's.
_base_ = ["./data.py", "../_base_/schedules/dense_100e.py"]

decoder = _base_.hr18_decoder
model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.hr18,
    neck=dict(
        type="MTINet",
        in_channels=_base_.hr18_channels,
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
        seg="./hr18_100e_nyud_seg.py",
        depth="./hr18_100e_nyud_depth.py",
        normals="./hr18_100e_nyud_normals.py",
    )
)
