# SegNet with a quarter of the channels and three of the five stages.
_base_ = ["./segnet.py"]
model = dict(backbone=dict(channels=(16, 32, 64), convs=(2, 2, 2)))
seg = dict(decoder=dict(in_channels=16, channels=16))
depth = dict(decoder=dict(in_channels=16, channels=16))
normals = dict(decoder=dict(in_channels=16, channels=16))
# Inverse depth is 0.1 to 0.3, but by Xavier's rule predictions begin 0.8 apart, and in a training
# of minutes the net silences its features until a constant is left. With weight 20, the gradients
# of depth in the shared weights are about as long as those of the classes.
inverse_depth = dict(
    type="DepthHead",
    loss_weight=20.0,
    decoder=dict(
        _base_.decoder,
        in_channels=16,
        channels=16,
        init_cfg=dict(type="Normal", std=0.01, bias=0.15, override=dict(name="conv_seg")),
    ),
)
