# Four tasks: labels and pseudo labels of each kind pull for themselves.
_base_ = ["./fcos-semfpn_r50_fpn_30e_bdd100k.py"]

optim_wrapper = dict(
    tasks=dict(
        _delete_=True,
        gt_det="loss_gt_det_*",
        gt_seg="loss_gt_seg_*",
        pseudo_det="loss_pseudo_det_*",
        pseudo_seg="loss_pseudo_seg_*",
    )
)

compare = dict(_delete_=True)  # no baselines of the base
