# Preprocessing, backbones and heads of the survey of dense tasks, arXiv 2004.13379.
preprocessor = dict(
    type="MultiTaskDataPreProcessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
)
norm = dict(type="BN", requires_grad=True)

# "HRNet-18" of the papers: HRNet-W18-small-v2
hr18 = dict(
    type="HRNet",
    norm_cfg=dict(type="BN", momentum=0.01, requires_grad=True),
    norm_eval=False,
    extra=dict(
        stage1=dict(
            num_modules=1,
            num_branches=1,
            block="BOTTLENECK",
            num_blocks=(2,),
            num_channels=(64,),
        ),
        stage2=dict(
            num_modules=1,
            num_branches=2,
            block="BASIC",
            num_blocks=(2, 2),
            num_channels=(18, 36),
        ),
        stage3=dict(
            num_modules=3,
            num_branches=3,
            block="BASIC",
            num_blocks=(2, 2, 2),
            num_channels=(18, 36, 72),
        ),
        stage4=dict(
            num_modules=2,
            num_branches=4,
            block="BASIC",
            num_blocks=(2, 2, 2, 2),
            num_channels=(18, 36, 72, 144),
        ),
    ),
    init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://msra/hrnetv2_w18_small"),
)
hr18_channels = [18, 36, 72, 144]
r18 = dict(
    type="ResNet",
    depth=18,
    norm_cfg=norm,
    norm_eval=False,
    init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18"),
)
r18_channels = [64, 128, 256, 512]
# Output stride 8, in torchvision's form with a stem of 7 x 7
r50 = dict(
    type="ResNet",
    depth=50,
    strides=(1, 2, 1, 1),
    dilations=(1, 1, 2, 4),
    contract_dilation=True,
    out_indices=(3,),
    norm_cfg=norm,
    norm_eval=False,
    init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
)

# Decoders: all scales in the size of the finest, or DeepLab's on the last
hr18_decoder = dict(
    type="FCNHead",
    in_channels=hr18_channels,
    in_index=(0, 1, 2, 3),
    channels=sum(hr18_channels),
    input_transform="resize_concat",
    kernel_size=1,
    num_convs=1,
    concat_input=False,
    dropout_ratio=0,
    norm_cfg=norm,
)
r18_decoder = dict(hr18_decoder, in_channels=r18_channels, channels=sum(r18_channels))
deeplab = dict(type="DeepLabHead", in_channels=2048, in_index=0, norm_cfg=norm)
