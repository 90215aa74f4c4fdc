"""Two real processes over gloo against one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys

import torch
from models import ROOT, Trunk
from torch.testing import assert_close

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import AGGREGATORS

LEVELS = ("parameter", "feature")
STEPS = 5


def whole_batch() -> torch.Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def train(name: str, level: str, batch: torch.Tensor, monitor: bool = False) -> dict[str, object]:
    """Trains a few steps on one batch; what it returns is comparable across numbers of ranks."""
    torch.manual_seed(0)
    model = Trunk().double()
    representation = model.trunk if level == "feature" else None
    cfg = {"type": name} | ({"seed": 3} if name in ("PCGrad", "GradVac", "RGW") else {})
    backward = MultiTaskBackward(
        model.parameters(), cfg, level=level, representation=representation, tasks="abcd"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = []
    for _ in range(STEPS):
        losses = model(batch)
        losses.pop("d")  # absent everywhere
        backward.monitor = monitor
        backward(losses)
        optimizer.step()
        optimizer.zero_grad()
        step = backward.last
        index = [step.tasks.index(task) for task in "abc"]
        steps.append((step.losses[index], step.weights[index], step.gramian[index][:, index]))
    return {"steps": steps, "parameters": [p.detach() for p in model.parameters()]}


def worker(out: str) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    half = whole_batch().chunk(2)[rank]
    results = {}
    for name in AGGREGATORS:
        for level in LEVELS:
            monitor = not AGGREGATORS[name].needs_gradients
            results[name, level] = train(name, level, half, monitor)
    results["absent"] = train_with_absent_task(half, rank)
    if rank == 0:
        torch.save(results, out)
    torch.distributed.destroy_process_group()


def train_with_absent_task(batch: torch.Tensor, rank: int) -> list[torch.Tensor]:
    """Rank 1 has no task c: what it owns alone must be averaged all the same, and nobody waits."""
    torch.manual_seed(0)
    model = Trunk().double()
    backward = MultiTaskBackward(model.parameters(), "MGDA", tasks="abcd")
    losses = model(batch)
    if rank == 1:
        losses = {k: losses[k] for k in "abd"}
    backward(losses)
    assert model.unused.weight.grad is None
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_two_halves_are_the_whole(tmp_path):
    out = tmp_path / "results.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, __file__, str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = torch.load(out, weights_only=False)
    for name in AGGREGATORS:
        for level in LEVELS:
            monitor = not AGGREGATORS[name].needs_gradients
            expected = train(name, level, whole_batch(), monitor)
            actual = results[name, level]
            for got, want in zip(actual["steps"], expected["steps"], strict=True):
                for g, w in zip(got, want, strict=True):
                    assert_close(g, w, rtol=1e-5, atol=1e-6)
            assert_close(actual["parameters"], expected["parameters"])

    # Task c is the mean over half the batch, times one half: rank 1 takes part with zeros.
    torch.manual_seed(0)
    model = Trunk().double()
    first, second = (model(half) for half in whole_batch().chunk(2))
    losses = {k: (first[k] + second[k]) / 2 for k in "abd"} | {"c": first["c"] / 2}
    MultiTaskBackward(model.parameters(), "MGDA", tasks="abcd")(losses)
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    assert_close(results["absent"], expected)


if __name__ == "__main__":
    worker(sys.argv[1])
