# UOAIS-Net with two ResNet-50, as its authors have it: MSRA's weights, stride in the 1 x 1.
_base_ = ["./uoais_r18_fpn_rgbd.py"]

model = dict(
    data_preprocessor=dict(
        mean=[103.53, 116.28, 123.675, 127.5], std=[1.0, 1.0, 1.0, 1.0], bgr_to_rgb=False
    ),
    backbone=dict(
        depth=50,
        style="caffe",
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://detectron2/resnet50_caffe"),
    ),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
