# A narrow HRNet with half of the survey's channels, from scratch, and the decoder for it.
small_channels = [8, 16, 32, 64]
small_hr = dict(
    type="HRNet",
    norm_cfg=dict(type="BN", requires_grad=True),
    norm_eval=False,
    extra=dict(
        stage1=dict(
            num_modules=1,
            num_branches=1,
            block="BOTTLENECK",
            num_blocks=(1,),
            num_channels=(16,),
        ),
        stage2=dict(
            num_modules=1, num_branches=2, block="BASIC", num_blocks=(1, 1), num_channels=(8, 16)
        ),
        stage3=dict(
            num_modules=1,
            num_branches=3,
            block="BASIC",
            num_blocks=(1, 1, 1),
            num_channels=(8, 16, 32),
        ),
        stage4=dict(
            num_modules=1,
            num_branches=4,
            block="BASIC",
            num_blocks=(1, 1, 1, 1),
            num_channels=(8, 16, 32, 64),
        ),
    ),
)
small_decoder = dict(
    type="FCNHead",
    in_channels=small_channels,
    in_index=(0, 1, 2, 3),
    channels=sum(small_channels),
    input_transform="resize_concat",
    kernel_size=1,
    num_convs=1,
    concat_input=False,
    dropout_ratio=0,
    norm_cfg=dict(type="BN", requires_grad=True),
)

# A quarter of ResNet-18's channels with the output stride of the survey's ResNet-50, from scratch,
# and DeepLab's head with dilations for maps of 32 x 16.
small_r18 = dict(
    type="ResNet",
    depth=18,
    base_channels=16,
    strides=(1, 2, 1, 1),
    dilations=(1, 1, 2, 4),
    out_indices=(3,),
    norm_cfg=dict(type="BN", requires_grad=True),
    norm_eval=False,
)
small_deeplab = dict(
    type="DeepLabHead", in_channels=128, in_index=0, channels=32, dilations=(1, 2, 4, 6)
)
# Disparity is tens of pixels, which weights that begin near 0 do not reach in a few minutes.
small_disparity = dict(
    type="DepthHead",
    decoder=dict(
        small_deeplab,
        init_cfg=dict(type="Normal", std=0.3, bias=30, override=dict(name="conv_seg")),
    ),
)
