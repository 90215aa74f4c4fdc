# Cross-Stitch on narrow SegNets, for two CPU cores.
_base_ = ["./segnet-small_cityscapes-7.py"]

model = dict(backbone=dict(type="CrossStitchSegNet", tasks=["seg", "depth"]))
