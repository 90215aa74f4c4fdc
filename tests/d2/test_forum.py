"""FORUM through Detectron2's trainers: the batch of the step once more, nothing logged twice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage, get_event_storage
from small import (
    TASKS,
    TwoTasks,
    config,
    detector,
    images,
    parameters,
    toy,
    toy_batches,
    toy_config,
)
from small import trainer_for as build
from torch import Tensor
from torch.testing import assert_close

from mtl_plugins import MultiTaskBackward
from mtl_plugins.tasks import TaskGroups

METHOD = ["MTL.AGGREGATOR.NAME", "FORUM", "MTL.AGGREGATOR.RHO", 2.0]


@pytest.mark.parametrize("amp", [False, True])
def test_trainer_trains_as_by_hand(amp: bool) -> None:
    cfg = toy_config(*METHOD, "SOLVER.BASE_LR", 0.1, "SOLVER.AMP.ENABLED", amp)
    trainer = build(cfg, toy(), toy_batches(6))
    trainer.multitask.total_steps = 6
    trainer.train(0, 6)
    model, groups = toy(), TaskGroups(TASKS)
    optimizer = build_optimizer(cfg, model)
    method = {"type": "FORUM", "rho": 2.0}
    backward = MultiTaskBackward(model.parameters(), method, tasks=list(TASKS), total_steps=6)
    backward.protect(model)
    for batch in toy_batches(6):

        def losses(batch: Tensor = batch) -> dict[str, Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                return groups(model(batch))

        optimizer.zero_grad()
        backward(losses(), again=losses)
        optimizer.step()
    assert_close(parameters(trainer.model), parameters(model))
    states = [b.aggregator.state_dict() for b in (trainer.multitask, backward)]
    assert states[0] == states[1] and any(states[0]["logits"].values())


class Writes(TwoTasks):
    def forward(self, batch: Any) -> dict[str, Tensor]:
        get_event_storage().put_scalar("calls", 1.0, smoothing_hint=False)
        return super().forward(batch)


def test_the_model_logs_once_a_step() -> None:
    trainer = build(toy_config(*METHOD), Writes(), toy_batches(2))
    with EventStorage() as storage:
        trainer.storage, trainer.iter = storage, 0
        trainer.run_step()
    assert len(storage.history("calls").values()) == 1


def test_a_detector_ends_where_another_method_leaves_draws_and_buffers() -> None:
    box_mask = {"box": ["loss_rpn_*", "loss_cls", "loss_box_reg"], "mask": ["loss_mask"]}
    found = []
    for name in ("FORUM", "Sum"):
        cfg = config(
            "MTL.AGGREGATOR.NAME", name, "SOLVER.BASE_LR", 1e-3, "MODEL.RESNETS.NORM", "BN"
        )
        cfg.MTL.TASKS = CfgNode(copy.deepcopy(box_mask))
        model = detector(cfg)
        trainer = build(cfg, model, [images(2)])
        torch.manual_seed(1)
        with EventStorage() as storage:
            trainer.storage, trainer.iter = storage, 0
            trainer.run_step()
        buffers = [b for n, b in model.named_buffers() if "running" in n or "tracked" in n]
        found.append((torch.get_rng_state(), buffers))
        assert trainer.multitask.last.tasks == ("box", "mask")
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] and all(map(torch.equal, found[0][1], found[1][1]))
