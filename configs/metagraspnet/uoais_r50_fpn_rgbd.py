# The same with two ResNet-50, as in UOAIS-Net.
_base_ = ["./uoais_r18_fpn_rgbd.py"]

model = dict(
    backbone=dict(depth=50, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50")),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
