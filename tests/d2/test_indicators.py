"""Weightings that go by Detectron2's evaluations, in a real trainer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.env import seed_all_rng
from small import parameters
from test_trainer import Kill, drawn  # noqa: F401
from test_trainer import cfg as drawn_cfg  # noqa: F401

from mtl_plugins.d2 import MTLTrainer


class Scores(DatasetEvaluator):
    """Evaluator whose results, in percent, are those of the weights at that time."""

    def process(self, inputs: Any, outputs: Any) -> None:
        pass

    def evaluate(self) -> dict[str, dict[str, float]]:
        box, mask = scores(Trainer.last.model)
        return {"bbox": {"AP": box}, "segm": {"AP": mask}}


def scores(model: torch.nn.Module) -> tuple[float, float]:
    sums = [float(p.detach().double().abs().sum()) for p in model.parameters()]
    return 5.0 + 1e3 * sum(sums[::2]) % 90.0, 5.0 + 1e3 * sum(sums[1::2]) % 90.0


class Trainer(MTLTrainer):
    last: Trainer

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        Trainer.last = self
        self.seen: list[list[float]] = []

    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str) -> DatasetEvaluator:
        return Scores()

    def run_step(self) -> None:
        super().run_step()
        self.seen.append(self.multitask.last.weights.tolist())


def trainer_for(cfg: Any, resume: bool = False) -> Trainer:
    seed_all_rng(3)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    return trainer


@pytest.fixture
def dtp(drawn_cfg: Any) -> Any:  # noqa: F811
    cfg = drawn_cfg
    cfg.merge_from_list(["SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 3, "SEED", 3])
    cfg.merge_from_list(["TEST.EVAL_PERIOD", 3, "SOLVER.STEPS", (4,)])
    cfg.merge_from_list(["MTL.WEIGHTING.NAME", "DTP", "MTL.WEIGHTING.GAMMA", 0.0])
    return cfg


def test_weights_follow_the_evaluation_and_a_resume_is_the_same(dtp, tmp_path):
    """Detectron2 writes the checkpoint of iteration 3 before it evaluates."""
    dtp.OUTPUT_DIR = str(tmp_path / "whole")
    whole = trainer_for(dtp)
    assert (
        str(whole._hooks[-1].indicators) == "detection: bbox/AP (percent), mask: segm/AP (percent)"
    )
    whole.train()
    assert whole.seen[:3] == [[1.0, 1.0]] * 3 and whole.seen[3] == whole.seen[4]

    dtp.OUTPUT_DIR = str(tmp_path / "parts")
    killed = trainer_for(dtp)
    killed.register_hooks([Kill(3)])
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    expected = [-math.log(score / 100.0) for score in scores(killed.model)]
    assert whole.seen[3] == pytest.approx(expected)

    resumed = trainer_for(dtp, resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    assert resumed.seen == whole.seen[3:]
    pairs = zip(parameters(whole.model), parameters(resumed.model), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["TEST.EVAL_PERIOD", 0], "none comes before the end of the run: .* found .* and 0"),
        (["TEST.EVAL_PERIOD", 5], "TEST.EVAL_PERIOD below 5"),
        (["DATASETS.TEST", ()], "expected DATASETS.TEST"),
        (["MTL.WEIGHTING.INDICATORS", "{mask: segm/AQ}"], "nobody has said the unit: segm/AQ"),
    ],
)
def test_errors_before_the_first_step(options, message, dtp):
    dtp.merge_from_list(options)
    with pytest.raises((KeyError, ValueError), match=message):
        Trainer(dtp)
