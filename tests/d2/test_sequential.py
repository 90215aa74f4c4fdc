"""Steps for each task in turn through Detectron2's trainers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from small import TASKS, config, detector, images, parameters, toy, toy_batches, toy_config
from small import trainer_for as build

from mtl_plugins.tasks import TaskGroups

BOX_MASK = {"box": ["loss_rpn_*", "loss_cls", "loss_box_reg"], "mask": ["loss_mask"]}


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_steps_are_those_of_a_loop(clip: bool, amp: bool) -> None:
    options = ["SOLVER.BASE_LR", 0.1, "SOLVER.CLIP_GRADIENTS.ENABLED", clip]
    cfg = toy_config("MTL.AGGREGATOR.NAME", "Sequential", *options, "SOLVER.AMP.ENABLED", amp)
    trainer = build(cfg, toy(), toy_batches(6))
    trainer.train(0, 6)
    model = toy()
    optimizer, groups = build_optimizer(cfg, model), TaskGroups(TASKS)
    for batch in toy_batches(6):
        for task in TASKS:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", enabled=amp):
                loss = groups(model(batch))[task]
            loss.backward()
            optimizer.step()
    pairs = zip(parameters(trainer.model), parameters(model), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_mask_rcnn_computes_the_heads_of_one_task_at_a_time() -> None:
    cfg = config("MTL.AGGREGATOR.NAME", "Sequential")
    cfg.MTL.TASKS = CfgNode(copy.deepcopy(BOX_MASK))
    model = detector(cfg)
    calls: list[str] = []
    for name in ("backbone", "roi_heads.box_head", "roi_heads.mask_head"):
        module: Any = model.get_submodule(name)
        module.register_forward_pre_hook(
            # Without an image of the task, a head may run over no regions.
            lambda m, args, name=name: calls.append(name) if _any(args[0]) else None
        )
    trainer = build(cfg, model, [images(2)])
    with EventStorage() as storage:
        trainer.storage, trainer.iter = storage, 0
        trainer.run_step()
    assert calls == ["backbone", "roi_heads.box_head", "backbone", "roi_heads.mask_head"]
    assert {"loss_mask", "loss_cls", "loss_rpn_cls"} <= storage.latest().keys()
    assert trainer.multitask.last.tasks == ("box", "mask")


def _any(x: Any) -> bool:
    return not isinstance(x, torch.Tensor) or x.numel() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["ConnectionStrength"], "GeneralizedRCNN has none: call .*convert_task_norm"),
        (["RotoGrad", "MTL.LEVEL", "feature"], "rotations of one module .* for MultiTaskSegmentor"),
    ],
)
def test_methods_that_need_parts_of_the_model_say_so(options: list[str], message: str) -> None:
    cfg = config("MTL.AGGREGATOR.NAME", *options)
    cfg.MTL.TASKS = CfgNode(copy.deepcopy(BOX_MASK))
    with pytest.raises(ValueError, match=f"aggregator: .*{message}"):
        build(cfg, detector(cfg), [images(2)])
