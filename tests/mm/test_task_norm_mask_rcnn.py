"""Mask R-CNN with norms of each task, against MMDetection's with the same weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from models import DETECTION_MASK, build_detector, mask_rcnn_config
from torch import nn

import mtl_plugins.mm.models  # noqa: F401
from mtl_plugins.gates import tensors
from mtl_plugins.mm.optim import MTLOptimWrapper
from mtl_plugins.task_norm import task_norm


def pair() -> tuple[nn.Module, nn.Module]:
    cfg = mask_rcnn_config(narrow=True)
    cfg.backbone.norm_cfg = {"type": "BN"}
    cfg.backbone.norm_eval = False
    torch.manual_seed(0)
    plain = build_detector(deepcopy(cfg))
    ours = build_detector(cfg | {"type": "TaskNormMaskRCNN"})
    ours.load_state_dict(plain.state_dict(), strict=False)
    for norm in task_norm(ours).norms.values():
        assert list(norm.norms) == ["detection", "mask"]
    return plain, ours


def batch(model: nn.Module, training: bool = True) -> dict[str, Any]:
    made = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_items=[2, 2], num_classes=3, with_mask=True)
    return model.data_preprocessor(made, training)


def test_at_first_losses_and_predictions_are_the_plain_ones() -> None:
    found = []
    for model in pair():
        torch.manual_seed(1)
        data = batch(model.train())
        losses = model(**data, mode="loss")
        model.eval()
        results = model(**batch(model, False), mode="predict")
        found.append((losses, results))
    (losses, results), (others, other_results) = found
    assert losses.keys() == others.keys()
    for name, loss in losses.items():
        for a, b in zip(tensors(loss), tensors(others[name]), strict=True):
            assert torch.equal(a, b), name
    for a, b in zip(results, other_results, strict=True):
        assert torch.equal(a.pred_instances.bboxes, b.pred_instances.bboxes)
        assert len(a.pred_instances) and torch.equal(a.pred_instances.masks, b.pred_instances.masks)


PHASES = [{"type": "ConnectionStrength", "phase": phase} for phase in (1, 2)]


@pytest.mark.parametrize("method", ["Sum", "PCGrad", "Sequential", *PHASES])
def test_methods_train_each_task_through_its_norms(method: Any) -> None:
    _, model = pair()
    before = deepcopy(model.state_dict())
    wrapper = MTLOptimWrapper(
        torch.optim.SGD(model.parameters(), 0.01), tasks=DETECTION_MASK, aggregator=method
    )
    passes: list[str] = []
    model.backbone.register_forward_hook(lambda *_: passes.append("trunk"))
    for part, head in (("box", model.roi_head.bbox_head), ("mask", model.roi_head.mask_head)):
        head.register_forward_hook(lambda *_, part=part: passes.append(part))
    made = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_items=[2, 2], num_classes=3, with_mask=True)
    log = model.train().train_step(made, wrapper)
    assert passes == ["trunk", "box", "trunk", "mask"]
    assert wrapper.multitask.last.tasks == ("detection", "mask")
    assert {"loss", "loss_rpn_cls", "loss_cls", "loss_bbox", "loss_mask"} <= log.keys()
    changed = [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])]
    for task in ("detection", "mask"):
        assert any(f"norms.{task}.weight" in name for name in changed)
    counts = [v for n, v in model.state_dict().items() if n.endswith("num_batches_tracked")]
    assert set(map(int, counts)) == {1}


def test_detection_comes_first() -> None:
    _, model = pair()
    tasks = dict(reversed(DETECTION_MASK.items()))
    wrapper = MTLOptimWrapper(
        torch.optim.SGD(model.parameters(), 0.01), tasks=tasks, aggregator="Sequential"
    )
    made = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_items=[2, 2], num_classes=3, with_mask=True)
    with pytest.raises(ValueError, match="name the task of detection before"):
        model.train().train_step(made, wrapper)
