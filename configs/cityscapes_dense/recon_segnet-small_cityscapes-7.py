# Recon on narrow SegNet, for two CPU cores: the norms and the last stage are a task's own. For a
# ranking of your own: --mtl recon, then tools/recon.py.
_base_ = ["./segnet-small_cityscapes-7.py"]

model = dict(
    task_layers=[
        f"backbone.{part}.{stage}.{number}.{layer}"
        for part in ("encoder", "decoder")
        for stage in range(3)
        for number in range(2)
        for layer in ([0, 1] if (part, stage) == ("decoder", 2) else [1])
    ]
)
