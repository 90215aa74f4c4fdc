"""Weightings that go by the metrics of the validation, in a real Runner."""

from __future__ import annotations

import math

import pytest
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import METRICS, MODELS
from mmengine.runner import Runner
from test_checkpoint_hook import assert_equal, everything
from test_optim_wrapper import mtl
from torch.testing import assert_close
from toy import TwoTasks, make_data, make_runner

import mtl_plugins.mm.hooks  # noqa: F401

NAMED = {"box": "toy/box:fraction", "mask": "toy/mask:percent"}


@MODELS.register_module(force=True)
class Validated(TwoTasks):
    """Predicts nothing."""

    def forward(self, inputs, mode="tensor"):
        return [{} for _ in inputs] if mode == "predict" else super().forward(inputs, mode)


@METRICS.register_module(force=True)
class Scores(BaseMetric):
    """Metrics that go up with the iterations; those of masks are in percent."""

    default_prefix = "toy"
    runner: Runner

    def __init__(self, missing: bool = False) -> None:
        super().__init__()
        self._missing = missing

    def process(self, data_batch, data_samples) -> None:
        self.results.append(0)

    def compute_metrics(self, results) -> dict[str, float]:
        box, mask = scores(self.runner.iter)
        return {"mask": mask} if self._missing else {"box": box, "mask": mask}


def scores(iteration: int) -> tuple[float, float]:
    return 0.1 + 0.05 * iteration, 20.0 + iteration


def build(work_dir, weighting, iters=7, missing=False, **overrides) -> Runner:
    options = dict(
        model=dict(type="Validated"),
        train_cfg=dict(by_epoch=False, max_iters=iters, val_interval=2),
        val_dataloader=dict(
            batch_size=2, dataset=make_data(2), sampler=dict(type="DefaultSampler")
        ),
        val_cfg=dict(),
        val_evaluator=dict(type="Scores", missing=missing),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=2)),
    )
    Scores.runner = make_runner(
        work_dir, mtl("Sum", weighting=weighting), iters=iters, **options | overrides
    )
    return Scores.runner


class Keep(Hook):
    """Keeps the weights of each step."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def after_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        self.seen.append(runner.optim_wrapper.multitask.last.weights.tolist())


def dtp(**options) -> dict:
    return {"type": "DTP", "gamma": 1.0, "momentum": 0.5, "indicators": NAMED} | options


def test_weights_follow_the_validations(tmp_path):
    runner = build(tmp_path, dtp())
    keep = Keep()
    runner.register_hook(keep)
    runner.train()
    means: list[float] = []
    for iteration in range(7):
        if iteration in (2, 4, 6):  # validated before the next iteration
            box, mask = scores(iteration)
            new = [box, mask / 100.0]
            means = [0.5 * (a + b) for a, b in zip(means, new, strict=True)] if means else new
        expected = [-(1.0 - k) * math.log(k) for k in means] or [1.0, 1.0]
        assert keep.seen[iteration] == pytest.approx(expected)


@pytest.mark.parametrize(
    "weighting",
    [
        dtp(),
        {"type": "Achievement", "potential": {"box": 0.8, "mask": 60.0}, "indicators": NAMED},
    ],
    ids=["DTP", "Achievement"],
)
def test_resumed_run_is_the_uninterrupted_one(weighting, tmp_path):
    """Its checkpoint was written before the validation of that iteration."""
    whole = build(tmp_path / "whole", weighting)
    whole.train()
    resumed = build(tmp_path / "parts", weighting)
    resumed.load_from = str(tmp_path / "whole" / "iter_4.pth")
    resumed._resume = True
    resumed.train()
    assert_equal(everything(resumed), everything(whole))


@pytest.mark.parametrize(
    ("options", "overrides", "message"),
    [
        (
            {},
            dict(val_dataloader=None, val_cfg=None, val_evaluator=None),
            "optim_wrapper.weighting: DTP goes by the metrics of the validation, and the config ha",
        ),
        (
            {},
            dict(train_cfg=dict(by_epoch=False, max_iters=7, val_interval=7)),
            "first would be at the end of the run .*Set train_cfg.val_interval below 7, found 7",
        ),
        ({"indicators": None}, {}, "metric of the task 'box' has to be named"),
        ({"indicators": NAMED | {"box": "toy/box"}}, {}, "nobody has said the unit: toy/box:fract"),
        ({"indicators": NAMED | {"box": "to/box:fraction"}}, {}, "the task 'box' no 'to/box'"),
        ({"indicators": NAMED | {"box": "toy/box:error"}}, {}, "DTP.best: the indicator of the"),
        ({"indicators": NAMED | {"boxes": "toy/box"}}, {}, "no task is called 'boxes'"),
    ],
)
def test_errors_before_the_first_step(options, overrides, message, tmp_path):
    runner = build(tmp_path, dtp(**options), **overrides)
    before = runner.model.state_dict()
    with pytest.raises((KeyError, ValueError), match=message):
        runner.train()
    assert runner.iter == 0
    assert_close(runner.model.state_dict(), before, rtol=0.0, atol=0.0)


def test_validation_that_gives_another_metric(tmp_path):
    with pytest.raises(KeyError, match="the validation gave the task 'box' no 'toy/box'"):
        build(tmp_path, dtp(), missing=True).train()


def test_other_weightings_validate_as_before(tmp_path):
    runner = build(tmp_path, {"type": "Equal"})
    runner.train()
    assert runner.optim_wrapper.multitask.last.weights.tolist() == [1.0, 1.0]
