# MTAN on a narrow SegNet, for two CPU cores.
_base_ = ["./segnet-small_nyuv2.py"]

model = dict(backbone=dict(type="MTANSegNet", tasks=["seg", "depth", "normals"]))

# Baselines of mtl-compare --single-task.
compare = dict(
    single_task=dict(
        seg="./segnet-small_nyuv2_seg.py",
        depth="./segnet-small_nyuv2_depth.py",
        normals="./segnet-small_nyuv2_normals.py",
    )
)
