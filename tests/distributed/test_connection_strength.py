"""Both phases in two processes over gloo, against one process that takes both halves."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from aggregation.test_connection_strength import TASKS, Network
from detectron2.layers import NaiveSyncBatchNorm
from mmengine.registry import DefaultScope
from torch import Tensor
from torch.testing import assert_close
from two_processes import results_of_two, work

from mtl_plugins import MultiTaskBackward
from mtl_plugins.task_norm import task_norm

Buffers = list[dict[str, Tensor]]


def batches(step: int) -> list[Tensor]:
    """The half of each rank; the second has another scale, and so other statistics."""
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(4, 3, 5, 5, generator=generator) * scale for scale in (1.0, 3.0)]


def start(phase: Any, lr: float = 0.1) -> tuple[Network, Any, MultiTaskBackward]:
    torch.manual_seed(0)
    model = Network(TASKS)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    method = {"type": "ConnectionStrength", "phase": phase, "draw": "step", "seed": 1}
    backward = MultiTaskBackward(optimizer, method, tasks=TASKS, total_steps=8)
    backward.protect(model)
    return model, optimizer, backward


def take(backward: MultiTaskBackward, optimizer: Any, loss_of: Any) -> None:
    if backward.in_turn:
        backward.take_in_turn(loss_of, optimizer.step)
        return
    optimizer.zero_grad()
    backward({task: loss for task in TASKS if (loss := loss_of(task)) is not None})
    optimizer.step()


def loss_on(model: Network, rank: int, step: int, task: str) -> Tensor | None:
    if rank and task == "b" and step == 3:  # this rank lacks the task once
        return None
    return model.loss(batches(step)[rank], task)


def on_rank(rank: int) -> dict[str, Any]:
    found = {}
    for phase in (1, 2, "mix"):
        model, optimizer, backward = start(phase)
        phases = []
        for step in range(6):
            phases.append(backward.in_turn)
            take(backward, optimizer, lambda task, s=step, m=model: loss_on(m, rank, s, task))
        found[phase] = ([p.detach() for p in model.parameters()], phases, backward.last.losses)
    return found | {"runner": segmentor(rank), "synchronised": synchronised(rank)}


def synchronised(rank: int | None) -> list[Tensor]:
    """Train with norms over both halves, each rank with its own, or one process with all images."""
    found = []
    for phase in (1, 2):
        model, optimizer, backward = start(phase)
        for norm in task_norm(model).norms.values() if rank is not None else ():
            for task, plain in norm.norms.items():
                norm.norms[task] = same = NaiveSyncBatchNorm(plain.num_features)
                same.weight, same.bias = plain.weight, plain.bias  # which the optimizer has
        for step in range(3):
            halves = batches(step)
            x = torch.cat(halves) if rank is None else halves[rank]
            take(backward, optimizer, lambda task, x=x, m=model: m.loss(x, task))
        found += [p.detach() for p in model.parameters()]
        found += [b for name, b in model.named_buffers() if name.endswith("running_mean")]
    return found


def put(model: Network, buffers: dict[str, Tensor]) -> None:
    """Exchange the buffers for copies, which the graph of an earlier pass does not know."""
    for path, buffer in buffers.items():
        module, _, name = path.rpartition(".")
        model.get_submodule(module)._buffers[name] = buffer.clone()


def alone(phase: Any) -> list[Tensor]:
    """One process: means of both halves' losses, and each half's running statistics."""
    model, optimizer, backward = start(phase)
    buffers: Buffers = [deepcopy(dict(model.named_buffers())) for _ in range(2)]

    def mean(task: str, step: int) -> Tensor:
        losses = []
        for rank in range(2):
            put(model, buffers[rank])
            losses.append(loss_on(model, rank, step, task))
            buffers[rank] = deepcopy(dict(model.named_buffers()))
        put(model, {n: (b + buffers[1][n]).to(b) / 2 for n, b in buffers[0].items()})
        return sum(loss for loss in losses if loss is not None) / 2

    for step in range(6):
        take(backward, optimizer, lambda task, s=step: mean(task, s))
    assert task_norm(model)
    return [p.detach() for p in model.parameters()]


def segmentor(rank: int) -> list[Tensor]:
    """Train a segmentor in its DDP wrapper; no image of the second rank, or of both, has depth."""
    import test_task_norm_runner as runner_tests
    from mmengine.model import MMDistributedDataParallel
    from mmseg.registry import MODELS

    from mtl_plugins.mm.optim import AmpMTLOptimWrapper, MTLOptimWrapper

    found = []
    for kind in (MTLOptimWrapper, AmpMTLOptimWrapper):
        with DefaultScope.overwrite_default_scope("mmseg"):
            torch.manual_seed(0)
            model = MODELS.build(runner_tests.model_config()).train()
        wrapper = kind(
            optimizer=torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
            tasks={task: f"{task}.*" for task in runner_tests.TASKS},
            aggregator="Sequential",
            clip_grad={"max_norm": 0.5},
        )
        options = dict.fromkeys(("broadcast_buffers", "find_unused_parameters"), bool(found))
        whole = MMDistributedDataParallel(model, **options)
        data = runner_tests.Data("depth")
        for step in range(3):
            i, j = ((4 + 2 * rank, 5), (2 - 2 * rank, 3 - 2 * rank), (0, 1))[step]
            batch = {key: [data[i][key], data[j][key]] for key in data[0]}
            depth = deepcopy([p.detach() for p in model.heads["depth"].parameters()])
            whole.train_step(batch, wrapper)
            there = [task for task in runner_tests.TASKS if (task, step) != ("depth", 2)]
            assert wrapper.multitask.last.tasks == tuple(there)
            moved = not all(map(torch.equal, depth, model.heads["depth"].parameters()))
            assert moved == ("depth" in there)
        found += [p.detach() for p in model.parameters()]
    return found


def test_two_processes_are_one_with_both_halves(tmp_path: Path) -> None:
    first, second = results_of_two(__file__, tmp_path / "out")
    for phase in (1, 2, "mix"):
        assert first[phase][1] == second[phase][1]
        for p, q in zip(first[phase][0], second[phase][0], strict=True):
            assert torch.equal(p, q)
        assert_close(first[phase][0], alone(phase), rtol=1e-4, atol=1e-5)
    assert set(first["mix"][1]) == {True, False}
    for found in (first["synchronised"], second["synchronised"]):
        assert_close(found, synchronised(None), rtol=1e-4, atol=1e-5)
    for p, q in zip(first["runner"], second["runner"], strict=True):
        assert torch.equal(p, q) and p.isfinite().all()


if __name__ == "__main__":
    work(on_rank)
