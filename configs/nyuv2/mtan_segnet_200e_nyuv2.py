# Paper A, Table 3: MTAN on SegNet.
_base_ = ["./segnet_200e_nyuv2.py"]

model = dict(backbone=dict(type="MTANSegNet", tasks=["seg", "depth", "normals"]))

# Baselines of mtl-compare --single-task.
compare = dict(
    single_task=dict(
        seg="./segnet_200e_nyuv2_seg.py",
        depth="./segnet_200e_nyuv2_depth.py",
        normals="./segnet_200e_nyuv2_normals.py",
    )
)
