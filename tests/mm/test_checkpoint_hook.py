"""Runs that are interrupted, in a real Runner and by a real kill."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS, MODELS
from mmengine.runner import Runner
from test_optim_wrapper import mtl
from torch import Tensor, nn
from torch.utils.data import Dataset
from toy import TwoTasks, make_data, make_runner, parameters
from two_processes import start

from mtl_plugins.mm.hooks.checkpoint_hook import AtomicLocalBackend

KILLS = 10
BALLAST = 500_000  # parameters, so that writing a checkpoint takes a while


@MODELS.register_module(force=True)
class Dropped(TwoTasks):
    """Draws from PyTorch's generator."""

    def __init__(self, ballast: int = 0) -> None:
        super().__init__()
        self.trunk.append(nn.Dropout(0.3))
        self.ballast = nn.Parameter(torch.zeros(ballast))

    def forward(self, inputs, mode="tensor"):
        if mode == "predict":
            return [{} for _ in inputs]
        losses = super().forward(inputs, mode)
        losses["loss_reg"] = losses["loss_reg"] + self.ballast.sum()
        return losses


class Augmented(Dataset):
    """Draws from NumPy's and Python's generators."""

    data = make_data()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"inputs": self.data[index]["inputs"] * np.random.rand() + random.random()}


@METRICS.register_module(force=True)
class Nothing(BaseMetric):
    """Validation takes place, and draws."""

    def process(self, data_batch, data_samples) -> None:
        torch.rand(3)
        np.random.rand(3)
        self.results.append(0)

    def compute_metrics(self, results) -> dict[str, float]:
        return {"nothing": 0.0}


def build(
    work_dir,
    iters: int,
    aggregator="PCGrad",
    interval=4,
    keep=-1,
    ballast=0,
    weighting=None,
    **overrides,
):
    """A runner with shuffled, augmented data and dropout, that validates after iteration 4."""
    validation = dict(
        val_dataloader=dict(batch_size=2, dataset=Augmented(), sampler=dict(type="DefaultSampler")),
        val_cfg=dict(),
        val_evaluator=dict(type="Nothing"),
    )
    options = dict(
        train_cfg=dict(by_epoch=False, max_iters=iters, val_interval=4),
        train_dataloader=dict(
            batch_size=2,
            sampler=dict(type="InfiniteSampler", shuffle=True),
            dataset=Augmented(),
        ),
        model=dict(type="Dropped", ballast=ballast),
        default_hooks=dict(
            checkpoint=dict(
                type="MTLCheckpointHook", by_epoch=False, interval=interval, max_keep_ckpts=keep
            )
        ),
        **validation,
    )
    method = mtl("MGDA", weighting=weighting) if weighting else mtl(aggregator)
    return make_runner(work_dir, method, iters=iters, **options | overrides)


def by_epoch(epochs: int) -> dict:
    """Epochs of four iterations and a dropped rest."""
    return dict(
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        train_dataloader=dict(
            batch_size=3, sampler=dict(type="DefaultSampler", shuffle=True), dataset=Augmented()
        ),
        default_hooks=dict(checkpoint=dict(type="MTLCheckpointHook", interval=1)),
    )


def everything(runner: Runner) -> list:
    """Parameters, the optimizer's state and that of the method, in an order of their own."""
    found = []

    def collect(value) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                collect(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                collect(item)
        else:
            found.append(value)

    collect([parameters(runner), runner.optim_wrapper.state_dict()])
    return found


def assert_equal(actual: list, expected: list) -> None:
    """Bitwise."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e) if isinstance(a, Tensor) else a == e


WITH_A_MEMORY = ["GradVac", "PCGrad", "NashMTL", "GradDrop", "MCLGS"]
LEARNED = ["Uncertainty", "GradNorm", "IMTLL", "FAMO", "RLW", {"type": "DWA", "window": 2}]


@pytest.mark.parametrize(
    "method",
    [dict(aggregator=name) for name in ["Sum", "MGDA", *WITH_A_MEMORY]]
    + [dict(weighting=name) for name in LEARNED],
    ids=str,
)
def test_resume_equals_an_uninterrupted_run(method, tmp_path):
    schedule = dict(
        param_scheduler=[
            dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=6),
            dict(type="CosineAnnealingLR", T_max=8, by_epoch=False),
        ]
    )
    straight = build(tmp_path / "a", 8, **method, **schedule)
    straight.train()
    halfway = str(tmp_path / "a" / "iter_4.pth")
    options = schedule | dict(resume=True, load_from=halfway)
    resumed = build(tmp_path / "b", 8, **method, **options)
    resumed.train()
    assert resumed.iter == 8
    assert_equal(everything(resumed), everything(straight))


def test_resume_by_epoch(tmp_path):
    straight = build(tmp_path / "a", 8, **by_epoch(2))
    straight.train()
    build(tmp_path / "b", 4, **by_epoch(1)).train()
    resumed = build(tmp_path / "b", 8, resume=True, **by_epoch(2))
    resumed.train()
    assert_equal(everything(resumed), everything(straight))


def test_without_the_random_states_it_would_not(tmp_path):
    """The test above can fail: dropout and augmentation do depend on them."""
    straight = build(tmp_path / "a", 8)
    straight.train()
    build(tmp_path / "b", 4).train()
    checkpoint = torch.load(tmp_path / "b" / "iter_4.pth", weights_only=False)
    del checkpoint["message_hub"]["runtime_info"]["random_states"]
    torch.save(checkpoint, tmp_path / "b" / "iter_4.pth")
    resumed = build(tmp_path / "b", 8, resume=True)
    resumed.train()
    assert not torch.equal(resumed.model.trunk[0].weight, straight.model.trunk[0].weight)


def test_old_checkpoints_are_removed(tmp_path):
    build(tmp_path, 5, interval=1, keep=2).train()
    assert {p.name for p in tmp_path.glob("*.pth")} == {"iter_4.pth", "iter_5.pth"}
    assert (tmp_path / "last_checkpoint").read_text().endswith("iter_5.pth")


def test_previous_file_stays_when_writing_fails(tmp_path, monkeypatch):
    """Killed, or out of space, before everything was on the disk."""
    backend = AtomicLocalBackend()
    backend.put(b"old", tmp_path / "file")

    def fail(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        backend.put(b"new", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"


def last_iteration(work_dir: Path) -> int:
    """That of the checkpoint which ``resume`` would take; it must be complete."""
    path = (work_dir / "last_checkpoint").read_text()
    return torch.load(path, weights_only=False)["meta"]["iter"]


def test_kill_at_random_moments(tmp_path):
    """Ten kills in a run that checkpoints at every iteration: none costs a finished one."""
    moments = random.Random(0)
    pointer, log, done, lost = tmp_path / "last_checkpoint", tmp_path / "log", 0, []
    for _ in range(KILLS):
        written = pointer.stat().st_mtime_ns if pointer.exists() else 0
        process = start(__file__, str(tmp_path), "100000", log=log)
        deadline = time.monotonic() + 120.0
        while not pointer.exists() or pointer.stat().st_mtime_ns == written:
            assert process.is_alive(), log.read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.5))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert f"started at {done}\n" in log.read_text()
        now = last_iteration(tmp_path)
        lost.append(now <= done)
        done = now
    assert not any(lost)

    resumed = build(tmp_path, done + 2, keep=2, ballast=BALLAST, resume=True)
    resumed.train()
    straight = build(tmp_path / "straight", done + 2, interval=10**6, ballast=BALLAST)
    straight.train()
    assert_equal(everything(resumed), everything(straight))


if __name__ == "__main__":
    run = build(sys.argv[1], int(sys.argv[2]), interval=1, keep=2, ballast=BALLAST, resume=True)
    run.load_or_resume()
    print(f"started at {run.iter}", flush=True)
    run.train()
