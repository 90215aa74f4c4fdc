"""Conflicts by layer in the trainers of Detectron2, and what of RotoGrad does not fit there."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from detectron2.solver import build_optimizer
from small import parameters, toy, toy_batches, toy_config, trainer_for

from mtl_plugins.d2 import LayerConflictHook
from mtl_plugins.d2.config import naming_keys
from mtl_plugins.layer_conflicts import FILE


def train(folder: Any, *options: Any, hook: bool = True, steps: int = 6) -> Any:
    trainer = trainer_for(toy_config("SOLVER.BASE_LR", 0.1, *options), toy(), toy_batches(6))
    if hook:
        trainer.register_hooks([LayerConflictHook(str(folder), period=4)])
    trainer.train(0, steps)
    return trainer


@pytest.mark.parametrize("method", ["Sum", "PCGrad"])
def test_record(method, tmp_path):
    trainer = train(tmp_path, "MTL.AGGREGATOR.NAME", method)
    record = json.loads((tmp_path / FILE).read_text())
    assert record["tasks"] == ["box", "mask"] and record["steps"] == 6
    assert set(record["scores"]) == {"backbone.0", "backbone.2"}
    plain = train(tmp_path, "MTL.AGGREGATOR.NAME", method, hook=False)
    assert all(map(torch.equal, parameters(trainer.model), parameters(plain.model)))


def test_scores_are_those_by_autograd(tmp_path):
    train(tmp_path)
    model = toy()
    optimizer = build_optimizer(toy_config("SOLVER.BASE_LR", 0.1), model)
    counts = {"backbone.0": 0, "backbone.2": 0}
    for batch in toy_batches(6):
        losses = model(batch)
        tasks = (losses["loss_cls"] + losses["loss_reg"], losses["loss_mask"])
        for name in counts:
            params = list(model.get_submodule(name).parameters())
            a, b = (
                torch.cat([g.flatten() for g in torch.autograd.grad(x, params, retain_graph=True)])
                for x in tasks
            )
            counts[name] += int(a @ b < 0)
        optimizer.zero_grad()
        sum(tasks).backward()
        optimizer.step()
    assert json.loads((tmp_path / FILE).read_text())["scores"] == counts


def test_state_continues(tmp_path):
    first = trainer_for(toy_config(), toy(), toy_batches(6))
    hook = LayerConflictHook(str(tmp_path))
    first.register_hooks([hook])
    first.train(0, 3)
    again = LayerConflictHook(str(tmp_path))
    again.load_state_dict(hook.state_dict())
    second = trainer_for(toy_config(), toy(), toy_batches(6))
    second.register_hooks([again])
    second.train(3, 6)
    assert json.loads((tmp_path / FILE).read_text())["steps"] == 6


@pytest.mark.parametrize(
    ("options", "threshold", "message"),
    [
        ([], 2.0, "MTL.MONITOR.LAYERS.threshold: expected a cosine"),
        (["MTL.LEVEL", "feature"], 0.0, "MTL.MONITOR.LAYERS.level: conflicts of layers"),
    ],
)
def test_refused(options, threshold, message, tmp_path):
    trainer = trainer_for(toy_config(*options), toy(), toy_batches(2))
    trainer.register_hooks([LayerConflictHook(str(tmp_path), threshold)])
    with pytest.raises(ValueError, match=f"^{message}"):
        trainer.train(0, 1)


def test_rotograd_is_one_clear_error():
    cfg = toy_config("MTL.AGGREGATOR.NAME", "RotoGrad", "MTL.LEVEL", "feature")
    with pytest.raises(ValueError, match="^MTL.AGGREGATOR: RotoGrad .* has none"), naming_keys():
        trainer_for(cfg, toy(), toy_batches(2))
