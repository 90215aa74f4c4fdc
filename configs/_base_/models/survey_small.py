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
