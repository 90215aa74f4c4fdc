"""The detector with a semantic head: which image trains what, and what the losses are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

import mtl_plugins.mm  # noqa: F401
from mtl_plugins.mm.allocation import AllocationGates
from mtl_plugins.mm.models import PartialDataPreprocessor, PartialDiceLoss, SemanticDetector
from mtl_plugins.tasks import TaskGroups

HEIGHT, WIDTH, CLASSES, SEG_CLASSES = 64, 96, 3, 4
SOURCES, TASKS = {"gt": 0.8, "pseudo": 0.2}, {"det": 1.7, "seg": 0.3}  # paper A, section 4.1.2
NORM = {"type": "GN", "num_groups": 4}
CONFIG = {
    "data_preprocessor": {"type": "PartialDataPreprocessor"},
    "backbone": {
        "type": "ResNet",
        "depth": 18,
        "base_channels": 8,
        "stem_channels": 8,
        "out_indices": (1, 2, 3),
        "norm_cfg": NORM,
        "norm_eval": False,
    },
    "neck": {"type": "FPN", "in_channels": [16, 32, 64], "out_channels": 8, "num_outs": 3},
    "bbox_head": {
        "type": "FCOSHead",
        "num_classes": CLASSES,
        "in_channels": 8,
        "feat_channels": 8,
        "stacked_convs": 1,
        "strides": [8, 16, 32],
        "regress_ranges": ((-1, 64), (64, 128), (128, 1e8)),
        "norm_on_bbox": True,
        "centerness_on_reg": True,
        "center_sampling": True,
        "conv_bias": True,
        "norm_cfg": NORM,
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.0},
    },
    "semantic_head": {
        "type": "mmseg.FPNHead",
        "num_classes": SEG_CLASSES,
        "in_channels": [8, 8, 8],
        "in_index": [0, 1, 2],
        "feature_strides": [8, 16, 32],
        "channels": 8,
        "dropout_ratio": 0.0,
        "norm_cfg": NORM,
        "align_corners": False,
        "loss_decode": [
            {"type": "mmseg.CrossEntropyLoss", "avg_non_ignore": True},
            {"type": "PartialDiceLoss", "loss_weight": 0.5},
        ],
    },
    "test_cfg": {
        "nms_pre": 100,
        "score_thr": 0.0,
        "nms": {"type": "nms", "iou_threshold": 0.6},
        "max_per_img": 10,
    },
}

pytestmark = pytest.mark.usefixtures("seeded")


def build(**changes: Any) -> SemanticDetector:
    options = CONFIG | {"source_weights": SOURCES, "task_weights": TASKS} | changes
    with DefaultScope.overwrite_default_scope("mmdet"):
        return SemanticDetector(**ConfigDict(options))


def boxes(count: int = 2) -> InstanceData:
    corners = torch.rand(count, 2) * 30
    sizes = 10 + torch.rand(count, 2) * 20
    labels = torch.randint(0, CLASSES, (count,))
    return InstanceData(bboxes=torch.cat([corners, corners + sizes], 1), labels=labels)


def semantic() -> PixelData:
    labels = torch.randint(0, SEG_CLASSES, (1, HEIGHT, WIDTH), dtype=torch.uint8)
    labels[torch.rand(1, HEIGHT, WIDTH) < 0.3] = 255
    return PixelData(sem_seg=labels)


def sample(**labels: Any) -> DetDataSample:
    size = (HEIGHT, WIDTH)
    one = DetDataSample(
        metainfo={
            "img_shape": size,
            "ori_shape": size,
            "batch_input_shape": size,
            "pad_shape": size,
            "scale_factor": (1.0, 1.0),
        }
    )
    for name, label in labels.items():
        one.set_field(label, name)
    return one


def by_hand(
    model: SemanticDetector, images: torch.Tensor, batch: list[DetDataSample]
) -> dict[str, torch.Tensor]:
    """Eq. 9 of paper A, from each head alone on each source's images alone."""
    expected = {}
    for source, source_weight in SOURCES.items():
        mine = [i for i, s in enumerate(batch) if f"{source}_instances" in s]
        if mine:
            labels = [sample(gt_instances=batch[i].get(f"{source}_instances")) for i in mine]
            terms = model.bbox_head.loss(model.extract_feat(images[mine]), labels)
            for name in ("cls", "bbox", "centerness"):
                weight = source_weight * TASKS["det"]
                expected[f"loss_{source}_det_{name}"] = weight * terms[f"loss_{name}"]
        mine = [i for i, s in enumerate(batch) if f"{source}_sem_seg" in s]
        if mine:
            logits = model.semantic_head(model.extract_feat(images[mine]))
            logits = F.interpolate(logits, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
            target = torch.cat([batch[i].get(f"{source}_sem_seg").sem_seg.long() for i in mine])
            weight = source_weight * TASKS["seg"]
            cross_entropy = F.cross_entropy(logits, target, ignore_index=255)
            expected[f"loss_{source}_seg_ce"] = weight * cross_entropy
            each = [dice(one, labels) for one, labels in zip(logits, target, strict=True)]
            expected[f"loss_{source}_seg_dice"] = weight * 0.5 * torch.stack(each).mean()
    return expected


def dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - 2 Σ p·q / (Σ p² + Σ q²) of one image, over its labelled pixels."""
    labelled = target != 255
    probability = logits.softmax(0)[:, labelled]
    truth = F.one_hot(target[labelled], SEG_CLASSES).T.float()
    square = (probability**2).sum() + (truth**2).sum()
    return 1 - 2 * (probability * truth).sum() / square


DETECTION = {"gt_instances": boxes}
SEGMENTATION = {"gt_sem_seg": semantic}
TEACHERS = {"pseudo_instances": boxes, "pseudo_sem_seg": semantic}
BATCHES = {
    "no teacher": [DETECTION, DETECTION, SEGMENTATION, SEGMENTATION],
    "all pseudo labels": [DETECTION | TEACHERS] * 2 + [SEGMENTATION | TEACHERS] * 2,
    "missing ones": [
        DETECTION | {"pseudo_sem_seg": semantic},
        SEGMENTATION | {"pseudo_instances": boxes},
        DETECTION,
        SEGMENTATION,
    ],
    "detection alone": [DETECTION] * 4,
    "nothing there": [{"gt_instances": lambda: boxes(0)}, SEGMENTATION, {}, DETECTION],
}


@pytest.mark.parametrize("labels", BATCHES.values(), ids=BATCHES)
def test_losses_are_those_of_equation_9(labels: list[dict[str, Any]]) -> None:
    model, images = build(), torch.randn(4, 3, HEIGHT, WIDTH)
    batch = [sample(**{name: make() for name, make in each.items()}) for each in labels]

    losses = model.loss(images, batch)

    expected = by_hand(model, images, batch)
    assert {name for name in losses if "loss" in name} == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=2e-4, atol=1e-5)


def test_without_pseudo_labels_there_are_the_two_terms_of_the_labels() -> None:
    model = build()
    batch = [sample(gt_instances=boxes()), sample(gt_sem_seg=semantic())]

    terms = {name[:11] for name in model.loss(torch.randn(2, 3, HEIGHT, WIDTH), batch)}

    assert {name for name in terms if "loss" in name} == {"loss_gt_det", "loss_gt_seg"}


def test_a_head_sees_no_image_without_its_label() -> None:
    model, images = build(), torch.randn(4, 3, HEIGHT, WIDTH, requires_grad=True)
    batch = [sample(gt_instances=boxes()), sample(gt_sem_seg=semantic())]
    batch += [sample(pseudo_instances=boxes()), sample()]
    seen = {}
    for name in ("bbox_head", "semantic_head"):
        head = getattr(model, name)
        head.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: [len(level) for level in args[0]]})
        )

    losses = model.loss(images, batch)

    assert seen == {"bbox_head": [2, 2, 2], "semantic_head": [1, 1, 1]}
    for name, images_of_it in {"gt_det_cls": [0], "pseudo_det_cls": [2], "gt_seg_ce": [1]}.items():
        (grad,) = torch.autograd.grad(losses[f"loss_{name}"], images, retain_graph=True)
        assert grad.flatten(1).any(1).nonzero().flatten().tolist() == images_of_it


def test_labels_of_a_source_without_weight_are_not_used() -> None:
    model = build(source_weights={"gt": 1.0})
    batch = [sample(pseudo_instances=boxes(), pseudo_sem_seg=semantic())]

    assert model.loss(torch.randn(1, 3, HEIGHT, WIDTH), batch) == {}


@pytest.mark.parametrize("absent", ["bbox_head", "semantic_head"])
def test_one_head_alone_trains_and_predicts(absent: str) -> None:
    model = build(**{absent: None})
    batch = [sample(gt_instances=boxes(), gt_sem_seg=semantic())]

    losses = model.loss(torch.randn(1, 3, HEIGHT, WIDTH), batch)
    prediction = model.eval().predict(torch.randn(1, 3, HEIGHT, WIDTH), batch)[0]

    task = "seg" if absent == "bbox_head" else "det"
    assert {name.split("_")[2] for name in losses if "loss" in name} == {task}
    assert ("pred_instances" in prediction) == (task == "det")
    assert ("pred_sem_seg" in prediction) == (task == "seg")


def test_a_map_is_predicted_at_the_size_of_the_file_and_leaves_out_what_is_unsure() -> None:
    model = build().eval()
    one = sample()
    one.set_metainfo({"ori_shape": (41, 77), "img_shape": (HEIGHT - 10, WIDTH)})
    images = torch.randn(1, 3, HEIGHT, WIDTH)

    classes = model.predict(images, [one])[0].pred_sem_seg.sem_seg
    logits = F.interpolate(
        model.semantic_head(model.extract_feat(images)), (HEIGHT, WIDTH), mode="bilinear"
    )
    logits = F.interpolate(logits[..., : HEIGHT - 10, :], (41, 77), mode="bilinear")
    torch.testing.assert_close(classes, logits.argmax(1))

    probability = logits.softmax(1).amax(1)
    threshold = probability.median().item()
    model.test_cfg["seg_threshold"] = threshold
    sure = model.predict(images, [one])[0].pred_sem_seg.sem_seg
    assert torch.equal(sure == 255, probability < threshold)
    assert torch.equal(sure[sure != 255], classes[sure != 255])


def test_weights_of_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="model.source_weights.*'psuedo'.*mean 'pseudo'"):
        build(source_weights={"psuedo": 1.0})
    with pytest.raises(ValueError, match="model.task_weights.*'detection'"):
        build(task_weights={"detection": 1.0})
    with pytest.raises(ValueError, match="neither"):
        build(bbox_head=None, semantic_head=None)


def test_first_batch_may_lack_what_the_model_calls_optional() -> None:
    groups = TaskGroups({"det": ["loss_gt_det_*", "loss_pseudo_det_*"], "seg": "loss_*_seg_*"})
    groups.optional = build().optional_losses

    assert groups({"loss_gt_seg_ce": torch.tensor(2.0)}) == {"seg": torch.tensor(2.0)}
    assert groups({"loss_gt_det_cls": torch.tensor(1.0)}) == {"det": torch.tensor(1.0)}

    wrong = TaskGroups({"det": "loss_*_det_*", "seg": "loss_*_semantic_*"})
    wrong.optional = build().optional_losses
    with pytest.raises(KeyError, match="tasks.seg: 'loss_\\*_semantic_\\*' matches none"):
        wrong({"loss_gt_det_cls": torch.tensor(1.0)})


def test_maps_are_padded_wherever_they_are() -> None:
    preprocessor = PartialDataPreprocessor(pad_size_divisor=32)
    small, large = sample(pseudo_sem_seg=semantic()), sample()
    data = {
        "inputs": [torch.zeros(3, HEIGHT, WIDTH), torch.zeros(3, HEIGHT + 1, WIDTH)],
        "data_samples": [small, large],
    }
    before = small.pseudo_sem_seg.sem_seg

    padded = preprocessor(data, training=True)["data_samples"][0].pseudo_sem_seg.sem_seg

    assert padded.shape == (1, 96, 96)
    assert torch.equal(padded[:, :HEIGHT, :WIDTH], before)
    assert (padded[:, HEIGHT:] == 255).all()


def test_dice_does_not_look_at_pixels_without_label() -> None:
    loss = PartialDiceLoss()
    logits = torch.randn(2, SEG_CLASSES, 6, 7, requires_grad=True)
    target = torch.randint(0, SEG_CLASSES, (2, 6, 7))
    target[0, :3] = 255
    target[1] = 255

    (grad,) = torch.autograd.grad(loss(logits, target), logits)

    assert not grad[0, :, :3].any() and not grad[1].any()
    assert grad[0, :, 3:].any()


@pytest.mark.parametrize("by_source", [False, True])
def test_an_allocated_image_trains_its_tasks_alone(by_source: bool) -> None:
    model, images = build(), torch.randn(3, 3, HEIGHT, WIDTH)
    everything = DETECTION | SEGMENTATION | TEACHERS
    batch = [sample(**{name: make() for name, make in everything.items()}) for _ in range(3)]
    sources = ["gt", "pseudo"] if by_source else ["*"]
    groups = TaskGroups({f"{s}_{t}": f"loss_{s}_{t}_*" for s in sources for t in TASKS})
    alone = [sample(gt_instances=batch[0].gt_instances), sample(gt_sem_seg=batch[1].gt_sem_seg)]
    if not by_source:
        alone[0].pseudo_instances = batch[0].pseudo_instances
        alone[1].pseudo_sem_seg = batch[1].pseudo_sem_seg
    expected = by_hand(model, images, [*alone, sample()])

    AllocationGates(model, groups)
    for one, task in zip(batch, (f"{sources[0]}_det", f"{sources[0]}_seg", None), strict=True):
        one.set_metainfo({"tasks": (task,) if task else ()})
    losses = model(images, batch, mode="loss")

    assert {name for name in losses if "loss" in name} == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=2e-4, atol=1e-5)


# --- crowds -------------------------------------------------------------------------------------


def _head(kind: str) -> dict[str, Any]:
    if kind == "FCOSHead":
        return CONFIG["bbox_head"]
    anchors = {
        "type": "AnchorGenerator",
        "octave_base_scale": 4,
        "scales_per_octave": 2,
        "ratios": [0.5, 1.0],
        "strides": [8, 16, 32],
    }
    coder = {"type": "DeltaXYWHBBoxCoder"}
    shape = {"num_classes": CLASSES, "in_channels": 8, "feat_channels": 8, "stacked_convs": 1}
    return {"type": kind, **shape, "anchor_generator": anchors, "bbox_coder": coder}


def _train_cfg(kind: str) -> dict[str, Any] | None:
    assigner = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0}
    return (
        None
        if kind == "FCOSHead"
        else {"assigner": assigner, "allowed_border": -1, "pos_weight": -1}
    )


@pytest.mark.parametrize("kind", ["FCOSHead", "RetinaHead"])
def test_a_crowd_is_no_background(kind: str) -> None:
    """Focal loss of MMDetection's own labels, without the places in the crowd."""
    head = _head(kind)
    if kind == "RetinaHead":
        head["loss_bbox"] = {"type": "L1Loss"}
        head["loss_cls"] = {"type": "FocalLoss", "use_sigmoid": True}
    detector = build(bbox_head=head, train_cfg=_train_cfg(kind), semantic_head=None)
    found = boxes()
    crowd = InstanceData(
        bboxes=torch.tensor([[20.0, 8.0, 95.0, 63.0]]), labels=torch.zeros(1, dtype=torch.long)
    )
    nothing = crowd[:0]
    image = torch.rand(1, 3, HEIGHT, WIDTH)
    losses = [
        detector.loss(image, [sample(gt_instances=found, ignored_instances=ignored)])
        for ignored in (nothing, crowd)
    ]
    factor = SOURCES["gt"] * TASKS["det"]
    dense = detector.bbox_head
    scores = dense(detector.extract_feat(image))[0]
    sizes = [s.shape[-2:] for s in scores]
    priors = torch.cat(dense.prior_generator.grid_priors(sizes, device="cpu"))
    logits = torch.cat([s.permute(0, 2, 3, 1).reshape(-1, CLASSES) for s in scores])
    labels = _labels(dense, scores, found)
    centres = priors if kind == "FCOSHead" else (priors[:, :2] + priors[:, 2:]) / 2

    def inside(box: torch.Tensor) -> torch.Tensor:
        return ((centres >= box[:2]) & (centres <= box[2:])).all(1)

    passed = inside(crowd.bboxes[0]) & (labels == CLASSES)
    for box in found.bboxes:
        passed &= ~inside(box)
    assert 0.2 < passed.float().mean() < 1 and (labels < CLASSES).any()
    target = F.one_hot(labels, CLASSES + 1)[:, :CLASSES].float()
    each = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2.0).sum(1)
    count = (labels < CLASSES).sum()
    without, with_crowd = (_sum(loss["loss_gt_det_cls"]) / factor for loss in losses)
    assert_close(without, each.sum() / count)
    assert_close(with_crowd, each[~passed].sum() / count)
    for name in losses[0].keys() - {"loss_gt_det_cls"}:
        assert_close(_sum(losses[1][name]), _sum(losses[0][name]))
    (gradient,) = torch.autograd.grad(_sum(losses[1]["loss_gt_det_cls"]), dense_bias(dense))
    assert gradient.isfinite().all() and gradient.any()


def dense_bias(head: torch.nn.Module) -> torch.Tensor:
    return (head.conv_cls if hasattr(head, "conv_cls") else head.retina_cls).bias


def _sum(loss: Any) -> torch.Tensor:
    return sum(loss) if isinstance(loss, list) else loss


def _labels(head: torch.nn.Module, scores: list[torch.Tensor], objects: InstanceData) -> Any:
    """The classes that MMDetection gives to all places."""
    sizes = [s.shape[-2:] for s in scores]
    if hasattr(head, "regress_ranges"):
        points = head.prior_generator.grid_priors(sizes, device="cpu")
        return torch.cat(head.get_targets(points, [objects])[0])
    meta = {"img_shape": (HEIGHT, WIDTH), "pad_shape": (HEIGHT, WIDTH)}
    anchors, valid = head.get_anchors(sizes, [meta], device="cpu")
    return torch.cat(
        [one.flatten() for one in head.get_targets(anchors, valid, [objects], [meta])[0]]
    )


def test_a_head_that_cannot_pass_over_crowds_says_so() -> None:
    detector = build(
        bbox_head={**_head("RetinaHead"), "type": "FreeAnchorRetinaHead"},
        train_cfg=_train_cfg("RetinaHead"),
        semantic_head=None,
    )
    one = sample(gt_instances=boxes(), ignored_instances=boxes())
    with pytest.warns(UserWarning, match="FreeAnchorRetinaHead may train ignored boxes"):
        detector.loss(torch.rand(1, 3, HEIGHT, WIDTH), [one])


def test_norms_of_each_task_make_each_head_that_of_a_plain_detector() -> None:
    from mtl_plugins.task_norm import TaskBatchNorm, fold_task_norm

    backbone = CONFIG["backbone"] | {"norm_cfg": {"type": "BN"}}
    model = build(task_norm={"modules": ["backbone"]}, backbone=backbone).train()
    inputs = torch.randn(2, 3, HEIGHT, WIDTH)
    norms = [part for part in model.modules() if isinstance(part, TaskBatchNorm)]
    assert norms and all(list(norm.norms) == ["det", "seg"] for norm in norms)
    for norm in norms:
        for one in norm.norms.values():
            torch.nn.init.uniform_(one.weight)
    found = model.eval()._forward(inputs)
    for task, output in zip(("det", "seg"), found, strict=True):
        head = model.bbox_head if task == "det" else model.semantic_head
        want = head(model.neck(fold_task_norm(model.backbone, task)(inputs)))
        torch.testing.assert_close(output, want)
