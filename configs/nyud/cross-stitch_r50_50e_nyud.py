# The survey's Cross-Stitch on ResNet-50: a backbone for each task, joined after each stage. It
# starts from the single-task runs deeplab_r50_100e_nyud_{seg,depth}.py, with a hundred times the
# learning rate for the units.
_base_ = ["./deeplab_r50_100e_nyud.py"]

runs = "{{$NYUD_RUNS:work_dirs}}/deeplab_r50_100e_nyud_"
backbones = {
    task: dict(
        _base_.r50,
        init_cfg=dict(
            type="Pretrained", checkpoint=f"{runs}{task}/epoch_100.pth", prefix="backbone."
        ),
    )
    for task in ("seg", "depth")
}
model = dict(
    backbone=dict(
        _delete_=True, type="CrossStitchBackbone", backbones=backbones, alpha=0.9, beta=0.1
    ),
    heads=dict(
        seg=dict(
            init_cfg=dict(
                type="Pretrained", checkpoint=runs + "seg/epoch_100.pth", prefix="heads.seg."
            )
        ),
        depth=dict(
            init_cfg=dict(
                type="Pretrained", checkpoint=runs + "depth/epoch_100.pth", prefix="heads.depth."
            )
        ),
    ),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="SGD", lr=1e-3, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(stitch=dict(lr_mult=100))),
)
train_cfg = dict(max_epochs=50, dynamic_intervals=[(41, 1)])
param_scheduler = [dict(type="PolyLR", by_epoch=True, power=0.9, begin=0, end=51, eta_min=0.0)]
