# Paper A, Table 3: MTAN on SegNet.
_base_ = ["./segnet_200e_nyuv2.py"]

model = dict(backbone=dict(type="MTANSegNet", tasks=["seg", "depth", "normals"]))
