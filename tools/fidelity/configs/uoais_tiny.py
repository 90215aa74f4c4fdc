# UOAIS-Net for many trainings of a minute: a quarter of the small one's channels, 160 x 120.
_base_ = ["../../../configs/metagraspnet/uoais_r18-small_fpn_rgbd.py"]

norm_cfg = dict(type="GN", num_groups=8, requires_grad=True)
head = dict(in_channels=32, conv_out_channels=16)
model = dict(
    backbone=dict(base_channels=16, norm_cfg=norm_cfg, fusion_norm_cfg=norm_cfg),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, conv_out_channels=32),
        mask_roi_extractor=dict(out_channels=32),
        visible_mask_head=head,
        mask_head=head,
        occlusion_head=head,
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=200, max_per_img=64), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=64), rcnn=dict(max_per_img=30)),
)
resized = dict(scale=(160, 120))
train_pipeline = [t | resized if t["type"] == "Resize" else t for t in _base_.train_pipeline]
test_pipeline = [t | resized if t["type"] == "Resize" else t for t in _base_.test_pipeline]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
custom_hooks = [
    dict(
        type="TaskInterferenceHook",
        interval=10,
        monitors=["gds", "gms", "angles", "fd"],
        representation="neck",
    )
]
