# Paper D, Table 2: MTI-Net on HRNet-18. Edges only supervise and help, at every scale, and have no
# head. The paper gives neither epochs, batch nor learning rate; these are the survey's.
_base_ = ["./data.py", "../_base_/schedules/dense_100e.py"]

decoder = _base_.hr18_decoder
model = dict(
    type="MultiTaskSegmentor",
    data_preprocessor=_base_.preprocessor,
    backbone=_base_.hr18,
    neck=dict(
        type="MTINet",
        in_channels=_base_.hr18_channels,
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
        seg="./hr18_60e_pascal-context_seg.py",
        parts="./hr18_60e_pascal-context_parts.py",
        sal="./hr18_60e_pascal-context_sal.py",
        normals="./hr18_60e_pascal-context_normals.py",
    )
)
