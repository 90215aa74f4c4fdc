# SegNet with a quarter of the channels and three of the five stages.
_base_ = ["./segnet.py"]
model = dict(backbone=dict(channels=(16, 32, 64), convs=(2, 2, 2)))
seg = dict(decoder=dict(in_channels=16, channels=16))
depth = dict(decoder=dict(in_channels=16, channels=16))
normals = dict(decoder=dict(in_channels=16, channels=16))
