"""Tiny detectors of MMDetection train and predict on top of the stand-in."""

from copy import deepcopy
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

SIDE, CLASSES, IOU = 96, 3, 0.4
STRIDES = [8, 16, 32, 64, 128]


def single_stage(kind: str, head: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": kind,
        "data_preprocessor": {"type": "DetDataPreprocessor"},
        "backbone": {"type": "ResNet", "depth": 18, "base_channels": 8},
        "neck": {
            "type": "FPN",
            "in_channels": [8, 16, 32, 64],
            "out_channels": 8,
            "start_level": 1,
            "add_extra_convs": "on_output",
            "num_outs": 5,
        },
        "bbox_head": {
            "num_classes": CLASSES,
            "in_channels": 8,
            "feat_channels": 8,
            "stacked_convs": 1,
            **head,
        },
        "test_cfg": prediction(),
    }


def prediction() -> dict[str, Any]:
    return {
        "nms_pre": 200,
        "min_bbox_size": 0,
        "score_thr": 0.0,
        "nms": {"type": "nms", "iou_threshold": IOU},
        "max_per_img": 20,
    }


def anchors(**options: Any) -> dict[str, Any]:
    return {"type": "AnchorGenerator", "ratios": [0.5, 1.0, 2.0], "strides": STRIDES, **options}


def assigner(positive: float, negative: float) -> dict[str, Any]:
    return {"type": "MaxIoUAssigner", "pos_iou_thr": positive, "neg_iou_thr": negative}


def sampler(count: int) -> dict[str, Any]:
    return {"type": "RandomSampler", "num": count, "pos_fraction": 0.5, "add_gt_as_proposals": True}


def fcos() -> dict[str, Any]:
    norm = {"type": "GN", "num_groups": 4}
    return single_stage("FCOS", {"type": "FCOSHead", "strides": STRIDES, "norm_cfg": norm})


def retinanet() -> dict[str, Any]:
    scales = {"octave_base_scale": 4, "scales_per_octave": 2}
    head = {"type": "RetinaHead", "anchor_generator": anchors(**scales)}
    training = {
        "assigner": {**assigner(0.5, 0.4), "min_pos_iou": 0},
        "sampler": {"type": "PseudoSampler"},
        "allowed_border": -1,
        "pos_weight": -1,
    }
    return {**single_stage("RetinaNet", head), "train_cfg": training}


def retinanet_on_deformed_features(kind: str) -> dict[str, Any]:
    """Bottlenecks with deformable convolutions; a basic block takes none."""
    config = retinanet()
    dcn = {"type": kind, "deform_groups": 2, "fallback_on_stride": False}
    config["backbone"] |= {"depth": 50, "dcn": dcn, "stage_with_dcn": [False, True, True, True]}
    config["neck"]["in_channels"] = [32, 64, 128, 256]
    return config


def retinanet_dcn() -> dict[str, Any]:
    return retinanet_on_deformed_features("DCN")


def retinanet_dcnv2() -> dict[str, Any]:
    return retinanet_on_deformed_features("DCNv2")


def tood() -> dict[str, Any]:
    norm = {"type": "GN", "num_groups": 4}
    scales = {"octave_base_scale": 8, "scales_per_octave": 1, "ratios": [1.0]}
    config = single_stage(
        "TOOD",
        {
            "type": "TOODHead",
            "stacked_convs": 2,
            "anchor_type": "anchor_free",
            "anchor_generator": anchors(**scales),
            "norm_cfg": norm,
            "initial_loss_cls": {"type": "FocalLoss", "activated": True},
            "loss_cls": {"type": "QualityFocalLoss", "activated": True},
            "loss_bbox": {"type": "GIoULoss"},
        },
    )
    training = {
        "initial_epoch": 0,
        "initial_assigner": {"type": "ATSSAssigner", "topk": 9},
        "assigner": {"type": "TaskAlignedAssigner", "topk": 13},
        "alpha": 1,
        "beta": 6,
        "allowed_border": -1,
        "pos_weight": -1,
    }
    return {**config, "train_cfg": training}


def carafe() -> dict[str, Any]:
    config = retinanet()
    neck = {"type": "FPN_CARAFE", "in_channels": [8, 16, 32, 64], "out_channels": 8}
    upsampling = {"type": "carafe", "up_kernel": 5, "up_group": 1, "encoder_kernel": 3}
    upsampling |= {"encoder_dilation": 1, "compressed_channels": 8}
    return {**config, "neck": {**neck, "num_outs": 5, "upsample_cfg": upsampling}}


def dyhead() -> dict[str, Any]:
    config = retinanet()
    blocks = {"type": "DyHead", "in_channels": 8, "out_channels": 16, "num_blocks": 1}
    head = {**config["bbox_head"], "in_channels": 16}
    return {**config, "neck": [config["neck"], blocks], "bbox_head": head}


def mask_rcnn() -> dict[str, Any]:
    def extractor(size: int) -> dict[str, Any]:
        return {
            "type": "SingleRoIExtractor",
            "roi_layer": {"type": "RoIAlign", "output_size": size, "sampling_ratio": 0},
            "out_channels": 8,
            "featmap_strides": STRIDES[:4],
        }

    config = single_stage("MaskRCNN", {})
    del config["bbox_head"]
    proposals = {
        "nms_pre": 200,
        "min_bbox_size": 0,
        "nms": {"type": "nms", "iou_threshold": 0.7},
        "max_per_img": 50,
    }
    return {
        **config,
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": 8,
            "feat_channels": 8,
            "anchor_generator": anchors(scales=[4]),
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": extractor(7),
            "bbox_head": {
                "type": "Shared2FCBBoxHead",
                "in_channels": 8,
                "fc_out_channels": 16,
                "num_classes": CLASSES,
            },
            "mask_roi_extractor": extractor(14),
            "mask_head": {
                "type": "FCNMaskHead",
                "num_convs": 1,
                "in_channels": 8,
                "conv_out_channels": 8,
                "num_classes": CLASSES,
            },
        },
        "train_cfg": {
            "rpn": {
                "assigner": assigner(0.7, 0.3),
                "sampler": {**sampler(64), "add_gt_as_proposals": False},
                "allowed_border": -1,
                "pos_weight": -1,
            },
            "rpn_proposal": proposals,
            "rcnn": {
                "assigner": assigner(0.5, 0.5),
                "sampler": sampler(32),
                "mask_size": 28,
                "pos_weight": -1,
            },
        },
        "test_cfg": {"rpn": proposals, "rcnn": {**prediction(), "mask_thr_binary": 0.5}},
    }


def samples() -> list[Any]:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    boxes = torch.tensor([[8.0, 10, 50, 60], [40, 30, 90, 88]])
    masks = np.zeros((2, SIDE, SIDE), dtype=np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    shape = (SIDE, SIDE)
    sample = DetDataSample(
        metainfo={
            "img_shape": shape,
            "ori_shape": shape,
            "pad_shape": shape,
            "batch_input_shape": shape,
            "scale_factor": (1.0, 1.0),
        }
    )
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([0, 2]), masks=BitmapMasks(masks, SIDE, SIDE)
    )
    return [sample, deepcopy(sample)]  # RTMDet-Ins converts the masks in place


@pytest.mark.parametrize(
    "config",
    [fcos, retinanet, mask_rcnn, retinanet_dcn, retinanet_dcnv2, tood, carafe, dyhead],
)
def test_trains_and_predicts(mmcv_ops: ModuleType, config: Any) -> None:
    pytest.importorskip("mmdet")
    import mmdet.models  # noqa: F401  (fills the registry)
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict
    from mmengine.logging import MessageHub
    from mmengine.registry import DefaultScope

    torch.manual_seed(0)
    MessageHub.get_current_instance().update_info("epoch", 0)  # TOOD asks; a runner sets it
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(ConfigDict(config())).train()
    images = torch.randn(2, 3, SIDE, SIDE)

    losses, _ = model.parse_losses(model.loss(images, samples()))
    losses.backward()
    assert losses.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name

    with torch.no_grad():
        (found, _) = model.eval().predict(images, samples())
    found = found.pred_instances
    assert 0 < len(found) <= 20 and found.scores.isfinite().all()
    same_class = found.labels[:, None] == found.labels
    overlaps = (box_iou(found.bboxes, found.bboxes) * same_class).fill_diagonal_(0)
    assert overlaps.max() <= IOU + 1e-4
    if "masks" in found:
        assert found.masks.shape == (len(found), SIDE, SIDE)


@pytest.mark.parametrize(
    ("name", "tasks", "members", "late"),
    [
        (
            "retinanet/retinanet_r18_fpn_1x_coco",
            {"cls": "loss_cls", "box": "loss_bbox"},
            {"cls": {"loss_cls"}, "box": {"loss_bbox"}},
            False,
        ),
        (
            "yolox/yolox_nano_8xb8-300e_coco",
            {"cls": ["loss_cls", "loss_obj"], "box": "loss_[bl]*"},
            {"cls": {"loss_cls", "loss_obj"}, "box": {"loss_bbox"}},
            False,
        ),
        (
            "yolox/yolox_nano_8xb8-300e_coco",
            {"cls": ["loss_cls", "loss_obj"], "box": "loss_[bl]*"},
            {"cls": {"loss_cls", "loss_obj"}, "box": {"loss_bbox", "loss_l1"}},
            True,
        ),
        (
            "rtmdet/rtmdet-ins_tiny_8xb32-300e_coco",
            {"cls": "loss_cls", "box": "loss_bbox", "mask": "loss_mask"},
            {"cls": {"loss_cls"}, "box": {"loss_bbox"}, "mask": {"loss_mask"}},
            False,
        ),
    ],
)
def test_tasks_of_common_detectors(
    mmcv_ops: ModuleType,
    name: str,
    tasks: dict[str, Any],
    members: dict[str, set[str]],
    late: bool,
) -> None:
    """YOLOX has one more loss in its last epochs, which the same tasks take."""
    pytest.importorskip("mmdet")
    import mmdet.models  # noqa: F401  (fills the registry)
    from mmdet.registry import MODELS
    from mmengine.hub import get_config
    from mmengine.registry import DefaultScope

    from mtl_plugins.tasks import TaskGroups

    config = get_config(f"mmdet::{name}.py").model
    config.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(config).train()
        if late:
            model.bbox_head.use_l1 = True
        losses = model.loss(torch.randn(2, 3, SIDE, SIDE), samples())
    _, terms = model.parse_losses(losses)
    terms.pop("loss")
    grouped = TaskGroups(tasks)(terms)
    assert set().union(*members.values()) == terms.keys()
    for task, names in members.items():
        torch.testing.assert_close(grouped[task], sum(terms[name] for name in names))
