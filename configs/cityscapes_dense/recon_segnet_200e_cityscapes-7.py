# Paper D, Table 3, "w/ Recon": SegNet with 40 layers of a task's own, the first ones of the ranking
# that Recon's code has for these data: all batch norms, and the convolutions near the image and
# near the heads. 108.44 MiB. A ranking of your own: --mtl recon, then tools/recon.py.
_base_ = ["./segnet_200e_cityscapes-7.py"]

convs = dict(encoder=[2, 2, 3, 3, 3], decoder=[3, 3, 3, 2, 2])  # in each stage
own = dict(encoder=[0, 1], decoder=[1, 2, 3, 4])  # stages with convolutions of a task's own
model = dict(
    task_layers=[
        f"backbone.{part}.{stage}.{number}.{layer}"
        for part, counts in convs.items()
        for stage, count in enumerate(counts)
        for number in range(count)
        for layer in ([0, 1] if stage in own[part] else [1])
    ]
)
