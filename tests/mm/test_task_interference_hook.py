from __future__ import annotations

import json

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import VISBACKENDS
from mmengine.visualization import BaseVisBackend
from test_optim_wrapper import mtl
from torch import Tensor
from toy import TwoTasks, make_data, make_runner, parameters

from mtl_plugins.mm.hooks import TaskInterferenceHook
from mtl_plugins.monitors import (
    feature_disentanglement,
    gradient_direction_similarity,
    gradient_magnitude_similarity,
)


@VISBACKENDS.register_module(force=True)
class Recorder(BaseVisBackend):
    """A second backend, as TensorBoard's or wandb's would be."""

    records: list[tuple[int, dict]] = []

    @property
    def experiment(self):
        return self

    def _init_env(self):
        """Nothing to set up."""

    def add_scalars(self, scalar_dict, step=0, file_path=None, **kwargs):
        self.records.append((step, scalar_dict))


def run(tmp_path, aggregator="PCGrad", interval=2, hook=None, **options):
    hooks = [dict(type="TaskInterferenceHook", interval=interval) | (hook or {})]
    runner = make_runner(tmp_path, mtl(aggregator, **options), hooks)
    seen = []

    original = TaskInterferenceHook.after_train_iter

    def spy(self, runner, *args, **kwargs):
        original(self, runner, *args, **kwargs)
        if self.every_n_train_iters(runner, self.recorder.interval):
            seen.append(runner.optim_wrapper.multitask.last)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskInterferenceHook, "after_train_iter", spy)
        runner.train()
    (file,) = tmp_path.rglob("scalars.json")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return runner, [line for line in lines if "mtl/loss/box" in line], seen


@pytest.mark.parametrize("aggregator", ["PCGrad", "Sum"])
def test_scalars(aggregator, tmp_path):
    _, lines, seen = run(tmp_path, aggregator)
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line, step in zip(lines, seen, strict=True):
        assert line["mtl/gds"] == pytest.approx(float(gradient_direction_similarity(step.gramian)))
        assert line["mtl/gms"] == pytest.approx(float(gradient_magnitude_similarity(step.gramian)))
        for i, task in enumerate(("box", "mask")):
            assert line[f"mtl/loss/{task}"] == pytest.approx(step.losses[i].item())
            assert line[f"mtl/weight/{task}"] == pytest.approx(step.weights[i].item())
        if aggregator == "Sum":
            assert line["mtl/weight/box"] == line["mtl/weight/mask"] == 1.0


def test_losses_are_those_of_the_model(tmp_path):
    """The task losses add up to the loss that MMEngine logs."""
    run(tmp_path, "PCGrad", interval=1)
    (file,) = tmp_path.rglob("scalars.json")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    tasks = {s["step"]: s["mtl/loss/box"] + s["mtl/loss/mask"] for s in lines if "mtl/gds" in s}
    # MMEngine smooths over a window: only its first line is a single step's loss.
    first = next(line for line in lines if "loss" in line)
    assert tasks[first["step"]] == pytest.approx(first["loss"])


EVERY_MONITOR = dict(monitors=["gds", "gms", "angles", "fd"], representation="trunk")
FEATURE = dict(level="feature", representation="trunk")


@pytest.mark.parametrize(
    "aggregator, options",
    [
        ("Sum", {}),
        ("Mean", {}),
        ("GradVac", {}),
        ("GradDrop", {}),
        ("Sum", FEATURE),
        ("PCGrad", FEATURE),
        ("MGDA", dict(low_memory=True)),
        ("MGDA", dict(gramian="sketch")),
        ("MGDA", dict(weights_every=3)),
        ("Sum", dict(weighting="GradNorm")),
        ("PCGrad", dict(regularizer="CosReg")),
        ("MGDA", dict(accumulative_counts=2)),
    ],
)
@pytest.mark.parametrize("monitors", [None, ["fd"], ["gds"]], ids=str)
def test_training_does_not_change_by_a_bit(aggregator, options, monitors, tmp_path):
    hook = EVERY_MONITOR | (dict(monitors=monitors) if monitors else {})
    watched, lines, _ = run(tmp_path / "a", aggregator, hook=hook, **options)
    names = set(lines[0])
    wanted = set(hook["monitors"])
    assert {name for name in ("gds", "gms", "fd") if f"mtl/{name}" in names} == wanted - {"angles"}
    assert ("mtl/angle/box|mask" in names) == ("angles" in wanted)
    plain = make_runner(tmp_path / "b", mtl(aggregator, **options))
    plain.train()
    for p, q in zip(parameters(watched), parameters(plain), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    "aggregator, options",
    [
        ("Sum", {}),
        ("PCGrad", {}),
        ("Sum", FEATURE),
        ("MGDA", FEATURE),
        ("MGDA", dict(low_memory=True)),
        ("MGDA", dict(gramian="sketch")),
    ],
)
@pytest.mark.parametrize("monitors", [["fd"], ["gds", "fd"]], ids=str)
def test_feature_disentanglement_and_angles(aggregator, options, monitors, tmp_path):
    """Of the first step, from the gradients by their definition."""
    torch.manual_seed(0)
    twin = make_runner(tmp_path / "twin", mtl()).model
    z = twin.trunk(torch.stack([d["inputs"] for d in make_data()[:2]]))
    box = twin.box(z).square().mean() + twin.box(z).cos().mean() + twin.box(z).abs().mean()
    mask = (twin.mask(z) - 1.0).square().mean()
    rows = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in (box, mask)])
    hook = EVERY_MONITOR | dict(monitors=[*monitors, "angles"] if len(monitors) > 1 else monitors)
    _, lines, _ = run(tmp_path / "a", aggregator, interval=1, hook=hook, **options)
    assert lines[0]["mtl/fd"] == pytest.approx(float(feature_disentanglement(rows)))
    if len(monitors) > 1:
        where = [z] if options.get("level") else list(twin.trunk.parameters())
        a, b = (
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, where, retain_graph=True)])
            for loss in (box, mask)
        )
        angle = torch.rad2deg(torch.acos(a @ b / a.norm() / b.norm()))
        assert lines[0]["mtl/angle/box|mask"] == pytest.approx(float(angle), abs=1e-3)


def test_nothing_more_than_asked_for_is_computed(tmp_path):
    """The sum takes one backward pass, also when a monitor was there the iteration before."""
    passes = []
    backward = Tensor.backward

    def spy(self, *args, **kwargs):
        passes[-1] += 1
        return backward(self, *args, **kwargs)

    class Count(Hook):
        def before_train_iter(self, *args, **kwargs):
            passes.append(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "backward", spy)
        runner = make_runner(tmp_path, mtl("Sum"), [dict(type="TaskInterferenceHook", interval=3)])
        runner.register_hook(Count())
        runner.train()
    assert passes == [1, 1, 3, 1, 1, 3]


def test_fd_needs_a_module(tmp_path):
    hooks = [dict(type="TaskInterferenceHook", monitors=["fd"])]
    with pytest.raises(ValueError, match="TaskInterferenceHook.representation"):
        make_runner(tmp_path, mtl(), hooks).train()
    hooks[0]["representation"] = "truk"
    with pytest.raises(ValueError, match="TaskInterferenceHook.representation.*'trunk'"):
        make_runner(tmp_path / "b", mtl(), hooks).train()


def test_unknown_monitor():
    with pytest.raises(ValueError, match="TaskInterferenceHook.monitors.*did you mean 'gds'"):
        TaskInterferenceHook(monitors=["gdss"])


def test_every_backend_gets_them(tmp_path):
    Recorder.records.clear()
    runner = make_runner(
        tmp_path,
        mtl(),
        [dict(type="TaskInterferenceHook", interval=3)],
        visualizer=dict(
            type="Visualizer",
            vis_backends=[
                dict(type="LocalVisBackend"),
                dict(type="Recorder", save_dir=str(tmp_path)),
            ],
        ),
    )
    runner.train()
    assert [step for step, scalars in Recorder.records if "mtl/gds" in scalars] == [3, 6]


def test_accumulation(tmp_path):
    _, lines, _ = run(tmp_path, "PCGrad", accumulative_counts=3)
    assert [line["step"] for line in lines] == [3, 6]  # the updates after iterations 2 and 4


def test_needs_the_mtl_wrapper(tmp_path):
    hooks = [dict(type="TaskInterferenceHook", interval=1)]
    with pytest.raises(TypeError, match="needs optim_wrapper.type='MTLOptimWrapper'"):
        make_runner(tmp_path, dict(type="OptimWrapper"), hooks).train()


def test_interval_is_positive():
    with pytest.raises(ValueError, match="TaskInterferenceHook.interval"):
        TaskInterferenceHook(interval=0)


@pytest.mark.parametrize("aggregator", ["PCGrad", "Sum"])
def test_task_missing_for_an_epoch_is_warned_of_once(aggregator, tmp_path, monkeypatch):
    """An epoch is six iterations. The second and the third have no mask, the first has one."""
    runner = make_runner(
        tmp_path,
        mtl(aggregator),
        [dict(type="TaskInterferenceHook", interval=100)],
        iters=18,
    )
    forward = TwoTasks.forward

    def some(self, inputs, mode="tensor"):
        losses = forward(self, inputs, mode)
        if runner.iter >= 1:
            del losses["loss_mask"]
        return losses

    monkeypatch.setattr(TwoTasks, "forward", some)
    warned: list[tuple[int, str]] = []
    monkeypatch.setattr(
        runner.logger, "warning", lambda text, *_: warned.append((runner.iter + 1, text))
    )
    runner.train()
    about_tasks = [(i, text) for i, text in warned if "had no loss" in text]
    assert [i for i, _ in about_tasks] == [12]
    assert "the task 'mask'" in about_tasks[0][1]
