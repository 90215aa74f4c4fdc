# MTAN on a narrow SegNet, for two CPU cores.
_base_ = ["./segnet-small_nyuv2.py"]

model = dict(backbone=dict(type="MTANSegNet", tasks=["seg", "depth", "normals"]))
