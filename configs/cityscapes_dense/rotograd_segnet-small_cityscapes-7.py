# RotoGrad on narrow SegNet, for two CPU cores: the 16 channels are turned, not D's 1024 values.
_base_ = ["./segnet-small_cityscapes-7.py"]

model = dict(rotations=dict())
optim_wrapper = dict(level="feature", aggregator=dict(_delete_=True, type="RotoGrad", lr=1e-3))
