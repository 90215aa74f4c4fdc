# MTI-Net on ResNet-18, of which paper D has further tables in an appendix that was not at hand. The
# batch of six is that of the survey's ResNet-18 with five tasks.
_base_ = ["./mti-net_hr18_100e_pascal-context.py"]

decoder = dict(in_channels=_base_.r18_channels, channels=sum(_base_.r18_channels))
model = dict(
    backbone=dict(_delete_=True, **_base_.r18),
    neck=dict(in_channels=_base_.r18_channels),
    heads=dict(
        seg=dict(decoder=decoder),
        parts=dict(decoder=decoder),
        sal=dict(decoder=decoder),
        normals=dict(decoder=decoder),
    ),
)
train_dataloader = dict(batch_size=6)

compare = dict(_delete_=True)  # no baselines of the base
