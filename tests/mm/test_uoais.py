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
from mmdet.registry import TASK_UTILS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from models import NARROW_UOAIS, build_detector
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou
from train import lay_over

from mtl_plugins.mm.models import HierarchicalOcclusionHead, RGBDDataPreprocessor, RGBDResNet
from mtl_plugins.mm.models.uoais import Outputs
from mtl_plugins.tasks import TaskGroups

SMALL = Config.fromfile(ROOT / "configs/metagraspnet/uoais_r18-small_fpn_rgbd.py")
SMALL.merge_from_dict(NARROW_UOAIS)
# Table 1 of the paper, and the three that are left out there.
GRADIENTS = ("pcgrad", "gradvac", "rgw", "mgda", "cagrad", "aligned_mtl", "imtl", "cosreg")
WEIGHTS = ("uncertainty", "rlw", "famo", "dwa", "gradnorm")
METHODS = [
    *("sum", *GRADIENTS, "graddrop", "nash_mtl", *WEIGHTS),
    *(f"{name}+feature" for name in (*GRADIENTS, "graddrop")),
]
SIZE = (96, 128)
RESNET = {"depth": 18, "base_channels": 8, "norm_eval": False}

pytestmark = pytest.mark.usefixtures("seeded")


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


def test_depth_trains_where_colour_is_frozen() -> None:
    backbone = RGBDResNet(**RESNET, frozen_stages=1)
    assert all(p.requires_grad for p in backbone.depth.parameters())
    frozen = {n.split(".")[0] for n, p in backbone.rgb.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}


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
    with pytest.raises(ValueError, match="an image has 3 channels, not 4: LoadDepth is missing"):
        preprocess({"inputs": [image[:3]], "data_samples": [sample()]})


def test_seven_losses_and_every_parameter_learns(model: nn.Module) -> None:
    for name, p in model.backbone.named_parameters():
        if name.endswith("gn2.weight"):  # MMDetection's blocks begin with zero here
            nn.init.ones_(p)
    losses = losses_of(model, [sample(*TWO, occluded=[1, 0]), sample(TWO[0])])
    tasks = TaskGroups(SMALL.optim_wrapper.tasks)(losses)
    assert len(tasks) == len(losses) == 7
    assert all(loss.isfinite() and loss > 0 for loss in tasks.values())
    sum(tasks.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_paper_takes_a_step(name: str, model: nn.Module) -> None:
    cfg = lay_over(Config(deepcopy(SMALL.to_dict())), name)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    wrapper.initialize_count_status(model, 0, 100)
    before = [p.detach().clone() for p in model.parameters()]
    images = [torch.rand(4, *SIZE) * 255 for _ in range(2)]
    samples = [sample(*TWO, occluded=[1, 0]), sample(TWO[0])]
    model.train_step({"inputs": images, "data_samples": samples}, wrapper)
    assert len(wrapper.multitask.last.tasks) == 7 and not wrapper.multitask.last.nonfinite
    moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert sum(moved) > len(moved) / 2


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


def test_predictions_are_what_the_heads_say(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = [torch.tensor([[8.0, 8, 36, 36], [50, 30, 106, 86]]), torch.zeros(0, 4)]
    left = torch.full((2, 1, 28, 28), -20.0)
    left[..., :14] = 20.0
    whole = torch.full((2, 1, 28, 28), 20.0)
    occlusion = torch.tensor([[-20.0, 20.0], [20.0, -20.0]])
    outputs = {"outputs": Outputs(left, whole, occlusion)}
    monkeypatch.setattr(model.roi_head, "_mask_forward", lambda x, rois: outputs)
    found = [InstanceData(bboxes=b, labels=torch.zeros(len(b), dtype=torch.long)) for b in boxes]
    metas = [sample().metainfo, sample().metainfo]
    first, second = model.roi_head.predict_mask((), metas, found)
    assert first.occluded.tolist() == [1, 0]
    torch.testing.assert_close(first.occlusion_scores, torch.tensor([1.0, 0.0]))
    expected = rectangles([(8, 8, 36, 36), (50, 30, 106, 86)]).masks
    halves = rectangles([(8, 8, 22, 36), (50, 30, 78, 86)]).masks
    np.testing.assert_array_equal(first.masks.numpy(), expected)
    np.testing.assert_array_equal(first.visible_masks.numpy(), halves)
    assert len(second.masks) == len(second.visible_masks) == len(second.occluded) == 0


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("bbox_head", {"num_classes": 80}, r"bbox_head\.num_classes: expected 1, got 80"),
        ("bbox_head", {"num_shared_convs": 0, "num_shared_fcs": 1}, r"bbox_head\.num_shared_convs"),
        ("mask_head", {"conv_out_channels": 64}, "conv_out_channels of the heads have to be equal"),
        ("mask_roi_extractor", {"roi_layer": {"output_size": 7}}, r"mask_roi.*: expected 14"),
    ],
)
def test_heads_that_do_not_fit_are_named(part: str, changes: dict, message: str) -> None:
    cfg = deepcopy(SMALL.model)
    for key, value in changes.items():
        old = cfg.roi_head[part].get(key)
        cfg.roi_head[part][key] = {**old, **value} if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=rf"model\.roi_head\.{message}"):
        build_detector(cfg)


@pytest.mark.parametrize("name", ["uoais_r18_fpn_rgbd", "uoais_r50_fpn_rgbd"])
def test_the_paper_s_sizes_build(name: str) -> None:
    whole = Config.fromfile(ROOT / f"configs/metagraspnet/{name}.py")
    cfg = whole.model
    cfg.backbone.init_cfg = None
    model = build_detector(cfg).eval()
    features = model.extract_feat(torch.rand(1, 4, 64, 64))
    assert [tuple(f.shape[1:]) for f in features] == [
        (256, 16 // 2**i, 16 // 2**i) for i in range(5)
    ]
    # As in UOAIS-Net: frozen norms in both trunks, no weight decay for the others.
    trunks = [model.backbone.rgb, model.backbone.depth]
    norms = [m for trunk in trunks for m in trunk.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(p.requires_grad for m in norms for p in m.parameters())
    wrapper = build_optim_wrapper(model, whole.optim_wrapper)
    fused = {id(p) for m in model.backbone.fusions for p in m.norm.parameters()}
    decay = {id(p): g["weight_decay"] for g in wrapper.param_groups for p in g["params"]}
    assert fused and {decay[number] for number in fused} == {0.0}
    assert decay[id(model.backbone.fusions[0].conv.weight)] == 1e-4
    if "r50" in name:  # strides of MSRA's weights; blue first, nothing divided
        for trunk in trunks:
            assert [trunk.layer2[0].conv1.stride, trunk.layer2[0].conv2.stride] == [(2, 2), (1, 1)]
        image = torch.full((4, 32, 32), 200.0)
        seen = model.data_preprocessor({"inputs": [image]})["inputs"][0, :, 0, 0]
        torch.testing.assert_close(seen, 200 - torch.tensor([103.53, 116.28, 123.675, 127.5]))


def test_only_colour_starts_from_pretrained_weights(tmp_path: Any) -> None:
    """UOAIS-Net names the layers of its depth trunk so that no pretrained weight finds them."""
    cfg = Config.fromfile(ROOT / "configs/metagraspnet/uoais_r18_fpn_rgbd.py").model.backbone
    cfg = {**cfg, "base_channels": 8}
    del cfg["type"]
    pretrained = ResNet(depth=18, base_channels=8)
    pretrained.init_weights()
    torch.save(pretrained.state_dict(), tmp_path / "resnet.pth")
    cfg["init_cfg"] = {"type": "Pretrained", "checkpoint": str(tmp_path / "resnet.pth")}
    backbone = RGBDResNet(**cfg)
    backbone.init_weights()
    weight = pretrained.conv1.weight
    torch.testing.assert_close(backbone.rgb.conv1.weight, weight)
    assert not torch.isclose(backbone.depth.conv1.weight, weight).any()
    # Kaiming's standard deviation, by the fan out, and residual branches that are not 0.
    std = (2 / (backbone.depth.conv1.out_channels * 49)) ** 0.5
    assert backbone.depth.conv1.weight.std().item() == pytest.approx(std, rel=0.1)
    branches = [block.bn2.weight for block in backbone.depth.layer1]
    assert all((weight == 1).all() for weight in branches)


def test_a_region_belongs_to_the_object_that_it_overlaps_most() -> None:
    """One of overlapping objects does not take over the region that is best for it."""
    cfg = Config.fromfile(ROOT / "configs/metagraspnet/uoais_r18_fpn_rgbd.py").model.train_cfg
    with DefaultScope.overwrite_default_scope("mmdet"):
        assigner = TASK_UTILS.build(cfg.rcnn.assigner)
    objects = torch.tensor([[0.0, 0, 100, 100], [30, 0, 130, 100]])
    regions = InstanceData(priors=torch.tensor([[13.0, 0, 113, 100]]))
    truth = InstanceData(bboxes=objects, labels=torch.zeros(2, dtype=torch.long))
    ious = box_iou(objects, regions.priors)[:, 0]
    assert ious[0] > ious[1] > 0.5
    assert assigner.assign(regions, truth).gt_inds.tolist() == [1]


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
