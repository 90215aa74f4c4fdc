# MTI-Net on ResNet-18, of which paper D has further tables in an appendix that was not at hand.
_base_ = ["./mti-net_hr18_100e_nyud.py"]

decoder = dict(in_channels=_base_.r18_channels, channels=sum(_base_.r18_channels))
model = dict(
    backbone=dict(_delete_=True, **_base_.r18),
    neck=dict(in_channels=_base_.r18_channels),
    heads=dict(
        seg=dict(decoder=decoder), depth=dict(decoder=decoder), normals=dict(decoder=decoder)
    ),
)

compare = dict(_delete_=True)  # no baselines of the base
