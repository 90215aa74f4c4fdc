# SegNet and the heads that MTAN's code puts on it: for NYUv2's 13 classes, depth and normals.
model = dict(
    type="MultiTaskSegmentor",
    # The images of MTAN's files are fed as they are, in the order red, green, blue.
    data_preprocessor=dict(type="MultiTaskDataPreProcessor", bgr_to_rgb=True),
    backbone=dict(type="SegNet"),
)
decoder = dict(
    type="FCNHead",
    in_channels=64,
    channels=64,
    num_convs=1,
    concat_input=False,
    norm_cfg=None,
    act_cfg=None,
    dropout_ratio=0,
    init_cfg=dict(type="Xavier", layer="Conv2d", distribution="normal"),
)
seg = dict(type="SegmentationHead", num_classes=13, decoder=decoder)
depth = dict(type="DepthHead", decoder=decoder)
normals = dict(type="NormalHead", decoder=decoder, loss=dict(type="NormalLoss", mode="cosine"))
