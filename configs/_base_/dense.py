# Runtime of the configs of dense prediction: MMSegmentation's, with our parts.
default_scope = "mmseg"
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
custom_imports = dict(
    imports=[
        "mtl_plugins.mm",
        "mtl_plugins.mm.datasets",
        "mtl_plugins.mm.evaluation",
        "mtl_plugins.mm.models",
        "mtl_plugins.mm.transforms",
        "mtl_plugins.mm.visualization.dense",
    ]
)
visualizer = dict(
    type="MultiTaskVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer"
)
sync_bn = "torch"  # norms synchronised over the GPUs, where there are several

val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
