"""STA and ISTA on MMDetection's model families: the right images, or one clear error."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import batch_of, detector
from mmengine.logging import MessageHub
from torch import Tensor, nn
from torch.testing import assert_close

from mtl_plugins.mm.allocation import AllocationGates
from mtl_plugins.tasks import TaskGroups

FPN, ROI, YOLO = [8, 16, 32, 64, 128], [4, 8, 16, 32, 64], [8, 16, 32]
BOXES = ["loss_cls", "loss_bbox", "loss_centerness"]
INSTANCES = {"d": BOXES, "m": ["loss_mask*", "loss_segm"]}
TWO_STAGE = {"d": ["loss_rpn_*", "loss_cls", "loss_bbox"], "m": ["loss_mask*", "loss_point"]}
ONE = {"a": "*"}


@pytest.fixture(autouse=True)
def no_draws(monkeypatch) -> None:
    """Lets samplers take what comes first, and PointRend the same points of each region."""
    from mmdet.models.task_modules.samplers import RandomSampler

    def points(*shape: int, **options: Any) -> Tensor:
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        if len(shape) < 2:
            return torch.full(shape, 0.5, **options)
        steps = torch.linspace(0.05, 0.95, shape[-1] * shape[-2], **options)
        return steps.reshape(shape[-2:]).expand(shape).clone()

    monkeypatch.setattr(RandomSampler, "random_choice", lambda self, gallery, num: gallery[:num])
    monkeypatch.setattr(torch, "rand", points)
    MessageHub.get_current_instance().update_info("iter", 1000)  # that BoxInst asks for


def losses_of(model: nn.Module, batch: dict[str, Any], chosen: Sequence[int]) -> dict[str, Tensor]:
    """The losses on some of the images."""
    samples = [copy.deepcopy(batch["data_samples"][i]) for i in chosen]
    losses = model(batch["inputs"][list(chosen)], samples, mode="loss")
    return {
        name: torch.stack([x.mean() for x in (v if isinstance(v, list) else [v])]).sum()
        for name, v in losses.items()
        if "loss" in name
    }


def allocate(batch: dict[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    """Gives each image the tasks with the letters of its string."""
    batch = copy.deepcopy(batch)
    for sample, letters in zip(batch["data_samples"], tasks, strict=False):
        sample.set_metainfo({"tasks": tuple(letters)})
    return batch


RIGHT = {
    "mask scoring": ("ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py", ROI, TWO_STAGE),
    "point rend": ("point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py", ROI, TWO_STAGE),
    "double heads": (
        "double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py",
        ROI,
        {"d": ["loss_cls", "loss_bbox"], "m": "loss_rpn_*"},
    ),
    "panoptic fpn": (
        "panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py",
        ROI,
        {"d": ["loss_rpn_*", "loss_cls", "loss_bbox", "loss_mask"], "m": "loss_seg"},
    ),
    "condinst": ("condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py", FPN, INSTANCES),
    "boxinst": ("boxinst/boxinst_r50_fpn_ms-90k_coco.py", FPN, INSTANCES),
    "yolact": ("yolact/yolact_r50_1xb8-55e_coco.py", FPN, INSTANCES),
    "solo": ("solo/solo_r50_fpn_1x_coco.py", ROI, ONE),
    "decoupled solo": ("solo/decoupled-solo_r50_fpn_1x_coco.py", ROI, ONE),
    "solov2": ("solov2/solov2_r50_fpn_1x_coco.py", ROI, ONE),
    "rpn": ("rpn/rpn_r50_fpn_1x_coco.py", ROI, ONE),
    "retinanet": ("retinanet/retinanet_r50_fpn_1x_coco.py", FPN, ONE),
    "fcos": ("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", FPN, ONE),
    "nas-fcos": ("nas_fcos/nas-fcos_r50-caffe_fpn_fcoshead-gn-head_4xb4-1x_coco.py", FPN, ONE),
    "atss": ("atss/atss_r50_fpn_1x_coco.py", FPN, ONE),
    "gfl": ("gfl/gfl_r50_fpn_1x_coco.py", FPN, ONE),
    "autoassign": ("autoassign/autoassign_r50-caffe_fpn_1x_coco.py", FPN, ONE),
    "freeanchor": ("free_anchor/freeanchor_r50_fpn_1x_coco.py", FPN, ONE),
    "fsaf": ("fsaf/fsaf_r50_fpn_1x_coco.py", FPN, ONE),
    "foveabox": ("foveabox/fovea_r50_fpn_4xb4-1x_coco.py", FPN, ONE),
    "sabl": ("sabl/sabl-retinanet_r50_fpn_1x_coco.py", FPN, ONE),
    "ddod": ("ddod/ddod_r50_fpn_1x_coco.py", FPN, ONE),
    "yolof": ("yolof/yolof_r50-c5_8xb8-1x_coco.py", [32], ONE),
    "yolov3": ("yolo/yolov3_d53_8xb8-320-273e_coco.py", [32, 16, 8], ONE),
    "yolox": ("yolox/yolox_s_8xb8-300e_coco.py", YOLO, ONE),
    "rtmdet": ("rtmdet/rtmdet_tiny_8xb32-300e_coco.py", YOLO, ONE),
    "rtmdet-ins": ("rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py", YOLO, ONE),
    "centernet": ("centernet/centernet_r18_8xb16-crop512-140e_coco.py", [4], ONE),
    "cornernet": ("cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py", [4, 4], ONE),
    "ssd": ("ssd/ssd300_coco.py", [8, 16, 32, 64, 64, 64], ONE),
}
CHANGES: dict[str, dict[str, Any]] = {
    "ssd": {"bbox_head.in_channels": [64] * 6},
    "rtmdet": {"bbox_head.in_channels": 64, "bbox_head.feat_channels": 64},
    "rtmdet-ins": {"bbox_head.in_channels": 64, "bbox_head.feat_channels": 64},
    "condinst": {"mask_head.num_layers": 3},
    "boxinst": {"mask_head.num_layers": 3},
    "crowddet": {"roi_head.bbox_head.num_classes": 1},
    "dino": {"bbox_head.embed_dims": 64},
    "ddod": {"bbox_head.use_dcn": False},
    "centernet": {"bbox_head.in_channels": 64, "bbox_head.feat_channels": 64},
}
# Every task with some of the images, one that has none and one that has all of them.
SPREAD = {True: ["a", "", "a", ""], False: ["d", "m", "dm", "m"]}


@pytest.mark.parametrize("family", RIGHT)
def test_losses_are_those_of_the_images_of_the_task_alone(family):
    """The oracle is the same model without gates, on these images."""
    config, strides, tasks = RIGHT[family]
    model = detector(config, strides, **CHANGES.get(family, {}))
    plain, groups, batch = copy.deepcopy(model), TaskGroups(tasks), batch_of(model)
    if family == "rtmdet":  # with masks its assigner expects tensors
        for sample in batch["data_samples"]:
            del sample.gt_instances.masks
    spread = SPREAD[tasks is ONE]
    AllocationGates(model, groups)
    found = losses_of(model, allocate(batch, spread), range(4))
    for task in tasks:
        chosen = [i for i, letters in enumerate(spread) if task in letters]
        alone = losses_of(plain, batch, chosen)
        of_task = {name: loss for name, loss in alone.items() if groups.task_of(name) == task}
        assert of_task and sum(of_task.values()) > 0
        for name, loss in of_task.items():
            assert_close(found[name], loss, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    # Where nobody has the task, each of its losses is there, and is 0.
    empty = losses_of(model, allocate(batch, ["" if tasks is ONE else "d"] * 2), range(2))
    missing = "a" if tasks is ONE else "m"
    names = {name for name in found if groups.task_of(name) == missing}
    assert names == {name for name in empty if groups.task_of(name) == missing}
    assert all(empty[name] == 0.0 for name in names)


BOX_AND_CLASS = {"b": ["*bbox", "*iou", "*dice"], "c": "*cls", "m": ["*mask", "*centerness"]}
ALL_IMAGES = (
    "train_dataloader.batch_sampler: .*{} of .* computes '{}' of the task '.' on all images"
)
TOGETHER = r"optim_wrapper.tasks: {} computes loss_cls, loss_bbox.* together, on the same images"
STAGES = {"d": ["loss_rpn_*", "s*.loss_*", "loss_mask", "loss_glbctx"], "m": "loss_semantic_seg"}
STAGE_MASKS = {"d": ["loss_rpn_*", "*.loss_cls", "*.loss_bbox", "*.loss_iou"], "m": "*.loss_mask"}
RPN_ALONE = {"d": ["loss_cls", "loss_bbox", "loss_grid", "loss_rcnn_emd"], "m": "loss_rpn_*"}
REFUSED = {
    "cascade": (
        "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
        ROI,
        STAGE_MASKS,
        ALL_IMAGES.format(r"roi_head \(CascadeRoIHead\)", "s0.loss_cls"),
    ),
    "htc": (
        "htc/htc_r50_fpn_1x_coco.py",
        ROI,
        STAGES,
        ALL_IMAGES.format(r"roi_head \(HybridTaskCascadeRoIHead\)", "loss_semantic_seg"),
    ),
    "scnet": (
        "scnet/scnet_r50_fpn_1x_coco.py",
        ROI,
        STAGES,
        ALL_IMAGES.format(r"roi_head \(SCNetRoIHead\)", "loss_semantic_seg"),
    ),
    "sparse": (
        "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py",
        ROI,
        STAGE_MASKS | {"m": "nothing"},
        ALL_IMAGES.format(".*", "s0.loss_cls"),
    ),
    "queryinst": (
        "queryinst/queryinst_r50_fpn_1x_coco.py",
        ROI,
        STAGE_MASKS,
        ALL_IMAGES.format(".*", "s0.loss_cls"),
    ),
    "dynamic": (
        "dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py",
        ROI,
        RPN_ALONE,
        ALL_IMAGES.format(r"roi_head \(DynamicRoIHead\)", "loss_cls")
        + ".*; DynamicRoIHead overrides 'bbox_loss' of StandardRoIHead.*rpn_head",
    ),
    "grid": (
        "grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py",
        ROI,
        RPN_ALONE,
        "GridRoIHead overrides 'bbox_loss' of StandardRoIHead",
    ),
    "crowddet": (
        "crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman.py",
        ROI,
        RPN_ALONE,
        ALL_IMAGES.format(r"roi_head \(MultiInstanceRoIHead\)", "loss_rcnn_emd"),
    ),
    "fcos": (
        "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
        FPN,
        BOX_AND_CLASS,
        TOGETHER.format(r"bbox_head \(FCOSHead\)") + ".*beside tasks of other heads: none",
    ),
    "rtmdet-ins": (
        "rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py",
        YOLO,
        BOX_AND_CLASS,
        TOGETHER.format(r"bbox_head \(RTMDetInsSepBNHead\)"),
    ),
    "detr": ("detr/detr_r50_8xb2-150e_coco.py", [32], BOX_AND_CLASS, ALL_IMAGES.format(".*", ".*")),
    "dino": (
        "dino/dino-4scale_r50_8xb2-12e_coco.py",
        [8, 16, 32, 64],
        BOX_AND_CLASS,
        ALL_IMAGES.format(".*", ".*"),
    ),
    "mask2former": (
        "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
        [4, 8, 16, 32],
        BOX_AND_CLASS,
        ALL_IMAGES.format(".*", ".*"),
    ),
}


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_restricted_is_one_error(family):
    config, strides, tasks, message = REFUSED[family]
    model = detector(config, strides, **CHANGES.get(family, {}))
    batch = allocate(batch_of(model), ["".join(tasks), *tasks])
    AllocationGates(model, TaskGroups(tasks))
    with pytest.raises(ValueError, match=message):
        losses_of(model, batch, range(2))
