"""ConnectionStrength: its phases over a run, and phase 2 against the loop of algorithm 1."""

from __future__ import annotations

import pytest
import torch
from algorithm_1 import algorithm_1
from models import Trunk
from torch import Tensor, nn

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import ConnectionStrength
from mtl_plugins.connection_strength import shares, top_channels, top_tasks
from mtl_plugins.task_norm import convert_task_norm, task_norm

TASKS = ["a", "b", "c"]


class Network(nn.Module):
    """Four layers with norms of each task, in channels-last memory, and a layer of two tasks."""

    def __init__(self, tasks: list[str]) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=True),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 4, 2, groups=2),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 5, 1),
        ).to(memory_format=torch.channels_last)
        convert_task_norm(self.trunk, tasks, lambda net: net(torch.zeros(1, 3, 5, 5)))
        self.two = nn.Conv2d(5, 5, 1)
        self.heads = nn.ModuleDict({task: nn.Conv2d(5, 1, 1) for task in tasks})

    def loss(self, x: Tensor, task: str) -> Tensor:
        with task_norm(self).of(task):
            z = self.trunk(x)
        z = self.two(z) if task != "c" else z
        return (self.heads[task](z) - len(task) - TASKS.index(task)).square().mean()


def setting(tasks: list[str] = TASKS, **options: object) -> tuple[Network, MultiTaskBackward]:
    torch.manual_seed(0)
    model = Network(tasks)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight)
            part.running_var.uniform_(0.5, 2.0)
    backward = MultiTaskBackward(
        model.parameters(), ConnectionStrength(**options), tasks=tasks, total_steps=40
    )
    backward.protect(model)
    return model, backward


def by_hand(model: Network, rows: list[list[Tensor | None]], one_top: str) -> list[Tensor]:
    """Algorithm 1 on the weights of the two convolutions with norms, the sum elsewhere."""
    updates = []
    for (name, _), *grads in zip(model.named_parameters(), *rows, strict=True):
        found = [g for g in grads if g is not None]
        update = sum(found)
        if name in ("trunk.0.weight", "trunk.3.weight"):
            norm = model.trunk[1 if name == "trunk.0.weight" else 4]
            transposed = name == "trunk.3.weight"
            # Output channel 2 g + o of the group g stands at [3 g : 3 g + 3, o].
            where = [
                (slice(c // 2 * 3, c // 2 * 3 + 3), c % 2) if transposed else c
                for c in range(norm.conv.out_channels)
            ]
            top = top_tasks(shares(norm)).tolist()
            if one_top == "project" or len(set(top)) > 1:
                split = [torch.stack([g[at] for at in where]) for g in found]
                update = update.clone()
                for at, channel in zip(where, algorithm_1(split, top), strict=True):
                    update[at] = channel
        updates.append(update)
    return updates


@pytest.mark.parametrize("one_top", ["project", "sum"])
def test_phase_2_changes_paired_weights_alone(one_top: str) -> None:
    model, backward = setting(phase=2, one_top=one_top)
    norms = model.trunk[4].norms
    for task in TASKS:  # alike, so that all channels go to the first task
        norms[task].weight.data.copy_(norms["a"].weight)
        norms[task].momentum = 0.0
        norms[task].running_var.fill_(1.0)
    x = torch.randn(4, 3, 5, 5)
    losses = {task: model.loss(x, task) for task in TASKS}
    params = list(model.parameters())
    rows = [
        list(torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True))
        for loss in losses.values()
    ]
    expected = by_hand(model, rows, one_top)
    backward(losses)
    for p, want in zip(params, expected, strict=True):
        torch.testing.assert_close(p.grad, want, rtol=1e-4, atol=1e-6)
    names = [name for name, _ in model.named_parameters()]
    for name in ("trunk.0.weight", "trunk.3.weight"):
        k = names.index(name)
        projected = (params[k].grad - sum(row[k] for row in rows)).abs().max() > 1e-3
        assert projected == (one_top == "project" or name == "trunk.0.weight")


def test_a_batch_without_a_task_gets_the_plain_sum() -> None:
    model, backward = setting(phase=2)
    x = torch.randn(4, 3, 5, 5)
    losses = {task: model.loss(x, task) for task in TASKS[:2]}
    sum(losses.values()).backward(retain_graph=True)
    params = [p for p in model.parameters() if p.grad is not None]
    expected = [p.grad for p in params]
    for p in params:
        p.grad = None
    backward(losses)
    for p, want in zip(params, expected, strict=True):
        torch.testing.assert_close(p.grad, want)


def phases(aggregator: ConnectionStrength, steps: int, length: int | None = None) -> list[bool]:
    aggregator.total_steps, aggregator.steps_per_epoch = steps, length
    return [aggregator.begin() for _ in range(steps)]


def test_phases_over_a_run() -> None:
    assert phases(ConnectionStrength(1), 5) == [True] * 5
    assert phases(ConnectionStrength(2), 5) == [False] * 5
    assert phases(ConnectionStrength("sequential"), 12, 3) == [True] * 6 + [False] * 6
    assert phases(ConnectionStrength("sequential"), 15, 3) == [True] * 9 + [False] * 6
    assert phases(ConnectionStrength("alternate"), 7, 2) == [True] * 2 + [False] * 2 + [
        True
    ] * 2 + [False]
    assert phases(ConnectionStrength("alternate", "step"), 5, 2) == [True, False] * 2 + [True]
    mixed = [phases(ConnectionStrength(seed=s), 200, 20) for s in range(200)]
    for run in mixed:
        epochs = [run[i : i + 20] for i in range(0, 200, 20)]
        assert all(len(set(epoch)) == 1 for epoch in epochs) and run[0]
    for e in range(10):
        share = sum(run[20 * e] for run in mixed) / len(mixed)
        assert abs(share - (1 - e / 10)) < 0.12
    by_step = phases(ConnectionStrength(draw="step", seed=0), 20000, 2000)
    for e in range(10):
        share = sum(by_step[2000 * e : 2000 * (e + 1)]) / 2000
        assert abs(share - (1 - e / 10)) < 0.04
    # In a run that counts iterations, an epoch is a hundredth.
    run = phases(ConnectionStrength(seed=4), 1000)
    assert all(len(set(run[i : i + 10])) == 1 for i in range(0, 1000, 10))


def test_draws_go_on_after_a_restart() -> None:
    whole = phases(ConnectionStrength(seed=3), 50, 5)
    first = ConnectionStrength(seed=3)
    first.total_steps, first.steps_per_epoch = 50, 5
    found = [first.begin() for _ in range(23)]
    second = ConnectionStrength(seed=8)
    second.load_state_dict(first.state_dict())
    second.total_steps, second.steps_per_epoch = 50, 5
    assert found + [second.begin() for _ in range(27)] == whole


def test_another_method_takes_the_steps_of_phase_2() -> None:
    """Phase 1 mixed with PCGrad, on a plain model, against both by themselves."""
    torch.manual_seed(0)
    models = [Trunk(), Trunk()]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in models]
    method = {"type": "ConnectionStrength", "phase": "alternate", "draw": "step"}
    mixed = MultiTaskBackward(
        optimizers[0],
        method | {"base": {"type": "PCGrad", "seed": 3}},
        tasks=TASKS,
        total_steps=4,
        weighting={"type": "Fixed", "weights": {"a": 3.0, "b": 1.0, "c": 1.0}},
    )
    mixed.protect(models[0])
    options = {"tasks": TASKS, "weighting": mixed.weighting}
    parts = {
        True: MultiTaskBackward(optimizers[1], "Sequential", **options),
        False: MultiTaskBackward(optimizers[1], {"type": "PCGrad", "seed": 3}, **options),
    }
    turns = []
    for step in range(4):
        x = torch.randn(8, 6)
        turns.append(mixed.in_turn)
        for model, optimizer, backward in zip(
            models, optimizers, (mixed, parts[mixed.in_turn]), strict=True
        ):
            if turns[step]:
                backward.take_in_turn(lambda t, m=model, x=x: m(x)[t], optimizer.step)
            else:
                optimizer.zero_grad()
                backward({t: loss for t, loss in model(x).items() if t in TASKS})
                optimizer.step()
    assert turns == [True, False, True, False]
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(p, q)
    again = ConnectionStrength(base="GradVac")
    again.load_state_dict(ConnectionStrength(base="GradVac").state_dict())
    for base in ("Sequential", "GradDrop", "MCLGS", "RotoGrad", "MoCo"):
        with pytest.raises(ValueError, match=f"base: expected .* got {base}"):
            ConnectionStrength(base=base)


def test_errors() -> None:
    with pytest.raises(ValueError, match="phase: expected one of"):
        ConnectionStrength(phase=3)
    with pytest.raises(ValueError, match="how many steps"):
        ConnectionStrength().begin()
    with pytest.raises(ValueError, match="convert_task_norm"):
        ConnectionStrength().meet(nn.Linear(1, 1), TASKS)
    with pytest.raises(ValueError, match="tasks: ConnectionStrength"):
        ConnectionStrength().meet(Network(TASKS), ["a", "b"])
    model = Network(TASKS)
    backward = MultiTaskBackward(model.parameters(), {"type": "ConnectionStrength", "phase": 2})
    with pytest.raises(RuntimeError, match="protect"):
        backward({task: model.loss(torch.randn(2, 3, 5, 5), task) for task in TASKS})


def test_shares_of_channels_sum_to_one() -> None:
    model, _ = setting()
    found = top_channels(task_norm(model))
    assert list(found) == TASKS and abs(sum(found.values()) - 1.0) < 1e-6
    assert all(round(share * 10) == pytest.approx(share * 10) for share in found.values())
