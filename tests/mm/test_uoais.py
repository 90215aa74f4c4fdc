"""UOAIS-Net: two trunks, three heads in the order of occlusion, their losses and predictions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from commands import ROOT
from mmdet.models.backbones import ResNet
from mmdet.models.task_modules import SamplingResult
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData
from models import build_detector
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_plugins import MultiTaskBackward
from mtl_plugins.mm.models import HierarchicalOcclusionHead, RGBDDataPreprocessor, RGBDResNet
from mtl_plugins.mm.models.uoais import Outputs
from mtl_plugins.tasks import TaskGroups

SMALL = Config.fromfile(ROOT / "configs/metagraspnet/uoais_r18-small_fpn_rgbd.py")
SIZE = (96, 128)
RESNET = {"depth": 18, "base_channels": 8, "norm_eval": False}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def built() -> nn.Module:
    return build_detector(deepcopy(SMALL.model))


@pytest.fixture
def model(built: nn.Module) -> nn.Module:
    return deepcopy(built).train()


def rectangles(boxes: Sequence[Sequence[int]], size: tuple[int, int] = SIZE) -> BitmapMasks:
    masks = np.zeros((len(boxes), *size), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    return BitmapMasks(masks, *size)


def sample(*boxes: Sequence[int], occluded: Sequence[int] | None = None) -> DetDataSample:
    """Rectangles, whose left half alone is visible if something hides them."""
    occluded = [0] * len(boxes) if occluded is None else occluded
    seen = [(x1, y1, (x1 + x2) // 2 if hidden else x2, y2)
            for (x1, y1, x2, y2), hidden in zip(boxes, occluded, strict=True)]  # fmt: skip
    found = DetDataSample(
        metainfo={"img_shape": SIZE, "ori_shape": SIZE, "scale_factor": (1.0, 1.0)}
    )
    found.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float).reshape(-1, 4),
        labels=torch.zeros(len(boxes), dtype=torch.long),
        masks=rectangles(boxes),
        visible_masks=rectangles(seen),
        occluded=torch.tensor(occluded, dtype=torch.long),
    )
    nothing = {"bboxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    found.ignored_instances = InstanceData(**nothing)
    return found


TWO = [(10, 10, 60, 70), (50, 40, 120, 90)]


def losses_of(model: nn.Module, samples: list[DetDataSample]) -> dict[str, Tensor]:
    images = [torch.rand(4, *SIZE) * 255 for _ in samples]
    data = model.data_preprocessor({"inputs": images, "data_samples": samples}, True)
    _, terms = model.parse_losses(model(**data, mode="loss"))
    return {name: term for name, term in terms.items() if "loss" in name and name != "loss"}


def test_pretrained_weights_load_into_both_trunks(tmp_path: Any) -> None:
    checkpoint = tmp_path / "resnet.pth"
    pretrained = ResNet(**RESNET)
    torch.save(pretrained.state_dict(), checkpoint)
    backbone = RGBDResNet(**RESNET, init_cfg={"type": "Pretrained", "checkpoint": str(checkpoint)})
    backbone.init_weights()
    for trunk in (backbone.rgb, backbone.depth):
        for name, value in pretrained.state_dict().items():
            torch.testing.assert_close(trunk.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("part", ["rgb", "depth"])
def test_each_stage_fuses_colour_and_depth_as_a_grey_picture(part: str) -> None:
    backbone = RGBDResNet(**RESNET).eval()
    for fusion in backbone.fusions:  # picks the one or the other
        width = fusion.out_channels
        choice = torch.zeros(width, 2 * width)
        choice[:, width * (part == "depth") :][:, :width] = torch.eye(width)
        fusion.conv.weight.data = choice[:, :, None, None]
    image = torch.randn(2, 4, 64, 64)
    seen = image[:, :3] if part == "rgb" else image[:, 3:].repeat(1, 3, 1, 1)
    fused, alone = backbone(image), getattr(backbone, part)(seen)
    assert [tuple(f.shape) for f in fused] == [
        (2, 8 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(4)
    ]
    for one, other in zip(fused, alone, strict=True):
        # the batch norm's running statistics are 0 and 1, and its epsilon 1e-5
        torch.testing.assert_close(one * (1 + 1e-5) ** 0.5, other)


def test_the_preprocessor_normalises_four_channels_and_pads_both_kinds_of_masks() -> None:
    mean, std = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 8.0]
    preprocess = RGBDDataPreprocessor(
        mean, std, bgr_to_rgb=True, pad_size_divisor=32, pad_mask=True
    )
    image = torch.stack([torch.full((90, 100), value) for value in (3.0, 2.0, 1.0, 20.0)])
    one = sample()
    one.gt_instances = InstanceData(
        bboxes=torch.tensor([[0.0, 0, 10, 10]]),
        labels=torch.tensor([0]),
        masks=rectangles([(0, 0, 10, 10)], (90, 100)),
        visible_masks=rectangles([(0, 0, 5, 10)], (90, 100)),
    )
    data = preprocess({"inputs": [image], "data_samples": [one]}, training=True)
    assert data["inputs"].shape == (1, 4, 96, 128)
    torch.testing.assert_close(data["inputs"][0, :, 0, 0], torch.tensor([0.0, 0.0, 0.0, 2.0]))
    assert (data["inputs"][:, :, 90:] == 0).all() and (data["inputs"][..., 100:] == 0).all()
    truth = data["data_samples"][0].gt_instances
    assert truth.masks.masks.shape == truth.visible_masks.masks.shape == (1, 96, 128)
    assert truth.visible_masks.masks.sum() == 50
    with pytest.raises(ValueError, match=r"data_preprocessor\.mean: expected four values"):
        RGBDDataPreprocessor(mean[:3], std)


def test_seven_losses_and_every_parameter_learns(model: nn.Module) -> None:
    losses = losses_of(model, [sample(*TWO, occluded=[1, 0]), sample(TWO[0])])
    tasks = TaskGroups(SMALL.optim_wrapper.tasks)(losses)
    assert len(tasks) == len(losses) == 7
    assert all(loss.isfinite() and loss > 0 for loss in tasks.values())
    MultiTaskBackward(model.parameters(), "MGDA")(tasks)
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("boxes", [[], [TWO[0]]], ids=["no object", "nothing hidden"])
def test_a_batch_without_objects_or_occlusion_trains_on(model: nn.Module, boxes: list) -> None:
    losses = losses_of(model, [sample(*boxes), sample()])
    assert len(losses) == 7 and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    heads = ("loss_visible_mask", "loss_amodal_mask", "loss_occlusion")
    assert [bool(losses[name] > 0) for name in heads] == [bool(boxes)] * 3


def test_each_head_looks_at_the_heads_before_it_and_at_the_first_feature_of_the_box_head(
    model: nn.Module,
) -> None:
    roi_head = model.roi_head
    losses = losses_of(model, [sample(*TWO, occluded=[1, 0])])
    parts = {
        "visible": roi_head.visible_mask_head.trunk,
        "amodal": roi_head.mask_head.trunk,
        "occlusion": roi_head.occlusion_head,
        "visible logits": roi_head.visible_mask_head.conv_logits,
        "first of box": roi_head.bbox_head.shared_convs[0],
        "second of box": roi_head.bbox_head.shared_convs[1],
        "coding": roi_head.coding,
    }
    reached = {}
    for name in ("loss_visible_mask", "loss_amodal_mask", "loss_occlusion"):
        weights = [next(part.parameters()) for part in parts.values()]
        grads = torch.autograd.grad(losses[name], weights, retain_graph=True, allow_unused=True)
        reached[name] = {part for part, grad in zip(parts, grads, strict=True) if grad is not None}
    coded = {"visible", "first of box", "coding"}
    assert reached["loss_visible_mask"] == coded | {"visible logits"}
    assert reached["loss_amodal_mask"] == coded | {"amodal"}
    assert reached["loss_occlusion"] == coded | {"amodal", "occlusion"}


def test_each_mask_head_is_compared_with_its_own_masks(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A region of 28 x 28 pixels whose left half is visible: targets are the masks themselves.
    box = torch.tensor([[8.0, 8, 36, 36]])
    truth = sample((8, 8, 36, 36), occluded=[1]).gt_instances
    sampled = SamplingResult(
        pos_inds=torch.tensor([0]),
        neg_inds=torch.tensor([], dtype=torch.long),
        priors=box,
        gt_bboxes=box,
        assign_result=InstanceData(gt_inds=torch.tensor([1]), labels=torch.tensor([0])),
        gt_flags=torch.ones(1, dtype=torch.uint8),
    )
    left = torch.full((1, 1, 28, 28), -20.0)
    left[..., :14] = 20.0
    whole = torch.full((1, 1, 28, 28), 20.0)
    right_answers = (left, whole, torch.tensor([[-20.0, 20.0]]))
    wrong_answers = (whole, left, torch.tensor([[20.0, -20.0]]))
    names = ("loss_visible_mask", "loss_amodal_mask", "loss_occlusion")
    for right in itertools.product([True, False], repeat=3):
        answers = zip(right, right_answers, wrong_answers, strict=True)
        forward = {"outputs": Outputs(*(good if ok else bad for ok, good, bad in answers))}
        monkeypatch.setattr(model.roi_head, "_mask_forward", lambda x, rois, f=forward: f)
        losses = model.roi_head.mask_loss((), [sampled], None, [truth])["loss_mask"]
        # half of the pixels are wrong by 20, or the class by 40
        for name, ok, wrong in zip(names, right, (10.0, 10.0, 40.0), strict=True):
            expected = 0.0 if ok else wrong
            assert float(losses[name]) == pytest.approx(expected, abs=1e-6), (name, right)


@pytest.mark.parametrize("counts", [(5, 1), (1, 5), (6, 0), (0, 6)])
def test_both_classes_of_occlusion_count_alike(counts: tuple[int, int]) -> None:
    head = HierarchicalOcclusionHead(in_channels=8, conv_out_channels=8)
    logits = torch.randn(6, 2, requires_grad=True)
    occluded = torch.tensor([0] * counts[0] + [1] * counts[1])
    each = F.cross_entropy(logits, occluded, reduction="none")
    of_class = [each[occluded == label].mean() for label in (0, 1) if counts[label]]
    torch.testing.assert_close(head.loss(logits, occluded), sum(of_class) / len(of_class))


def test_occlusion_without_examples_is_no_loss() -> None:
    head = HierarchicalOcclusionHead(in_channels=8, conv_out_channels=8)
    logits = torch.zeros(0, 2, requires_grad=True)
    loss = head.loss(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0


def predictions(model: nn.Module, score_thr: float, scale: float) -> list[InstanceData]:
    model.eval()
    model.roi_head.test_cfg.score_thr = score_thr
    torch.manual_seed(1)
    samples = [sample(), sample()]
    for one in samples:
        ori_shape = (int(SIZE[0] / scale), int(SIZE[1] / scale))
        one.set_metainfo({"scale_factor": (scale, scale), "ori_shape": ori_shape})
    images = [torch.rand(4, *SIZE) * 255 for _ in samples]
    data = model.data_preprocessor({"inputs": images, "data_samples": samples})
    with torch.no_grad():
        return [one.pred_instances for one in model(**data, mode="predict")]


def test_predictions_have_both_masks_and_occlusion_at_the_size_of_the_file(
    model: nn.Module,
) -> None:
    full, half = predictions(model, 0.0, 1.0), predictions(model, 0.0, 2.0)
    for one, scaled in zip(full, half, strict=True):
        count = len(one)
        assert count == len(scaled) > 0
        assert one.masks.shape == one.visible_masks.shape == (count, *SIZE)
        assert scaled.masks.shape == scaled.visible_masks.shape == (count, 48, 64)
        assert one.masks.dtype == one.visible_masks.dtype == torch.bool
        torch.testing.assert_close(scaled.bboxes * 2, one.bboxes)
        assert ((one.occlusion_scores >= 0) & (one.occlusion_scores <= 1)).all()
        assert torch.equal(one.occluded, (one.occlusion_scores > 0.5).long())
        # A mask lies in its box, which was scaled once for both.
        for masks in (scaled.masks, scaled.visible_masks):
            for mask, (x1, y1, x2, y2) in zip(masks, scaled.bboxes.tolist(), strict=True):
                rows, columns = mask.nonzero().unbind(1)
                assert not len(rows) or (
                    rows.min() >= y1 - 1 and rows.max() <= y2 + 1
                    and columns.min() >= x1 - 1 and columns.max() <= x2 + 1
                )  # fmt: skip


def test_an_image_without_detections_has_empty_predictions(model: nn.Module) -> None:
    for one in predictions(model, 1.1, 1.0):
        assert len(one) == 0
        assert one.masks.shape == one.visible_masks.shape == (0, *SIZE)
        assert len(one.occluded) == len(one.occlusion_scores) == 0
