# Paper D, Table 3: RotoGrad on SegNet. Rotations of 1024 values, one a task, are what the printed
# 103.43 MiB say; the paper has no word on them. "segnet... --mtl rotograd" turns the 64 channels.
_base_ = ["./segnet_200e_cityscapes-7.py"]

model = dict(rotations=dict(size=1024))
optim_wrapper = dict(level="feature", aggregator=dict(_delete_=True, type="RotoGrad", lr=1e-5))
