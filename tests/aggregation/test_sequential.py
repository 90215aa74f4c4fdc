"""Sequential: the loop of steps, weighted, and what it cannot go with."""

from __future__ import annotations

import pytest
import torch
from models import Trunk
from torch import Tensor

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import Sequential

TASKS = ["a", "b", "c"]


def setting(**options: object) -> tuple[Trunk, torch.optim.Optimizer, MultiTaskBackward, Tensor]:
    torch.manual_seed(0)
    model = Trunk()
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.1)
    backward = MultiTaskBackward(optimizer, "Sequential", tasks=TASKS, **options)
    return model, optimizer, backward, torch.randn(8, 6)


@pytest.mark.parametrize("weights", [None, {"a": 2.0, "b": 0.5, "c": 1.0}])
def test_steps_are_those_of_a_loop(weights: dict[str, float] | None) -> None:
    weighting = None if weights is None else {"type": "Fixed", "weights": weights}
    model, optimizer, backward, x = setting(weighting=weighting)
    expected, other, _, _ = setting()
    for _ in range(4):
        assert backward.in_turn
        backward.take_in_turn(lambda task: model(x)[task], optimizer.step)
        for task in TASKS:
            other.zero_grad(set_to_none=True)
            loss = expected(x)[task]
            (loss if weights is None else weights[task] * loss).backward()
            other.step()
    pairs = zip(model.parameters(), expected.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    assert backward.last is not None and backward.last.tasks == tuple(TASKS)
    assert backward.last.gramian is None


def test_weighting_learns_once_a_step() -> None:
    model, optimizer, backward, x = setting(weighting="Uncertainty")
    backward.take_in_turn(lambda task: model(x)[task], optimizer.step)
    moments = backward.weighting.state_dict()["moments"]
    assert {task: steps for task, (_, _, steps) in moments.items()} == dict.fromkeys(TASKS, 1)


def test_a_loss_that_is_absent_or_not_finite_takes_no_step() -> None:
    model, optimizer, backward, x = setting()
    before = [p.detach().clone() for p in model.heads_ab.parameters()]

    def loss_of(task: str) -> Tensor | None:
        loss = model(x)[task]
        return {"a": None, "b": loss * torch.nan, "c": loss}[task]

    backward.take_in_turn(loss_of, optimizer.step)
    assert backward.last.tasks == ("b", "c") and backward.last.nonfinite == ("b",)
    pairs = zip(before, model.heads_ab.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    assert optimizer.state[model.heads["c"].weight]["step"] == 1
    for _ in range(18):
        backward.take_in_turn(loss_of, optimizer.step)
    with pytest.raises(FloatingPointError, match="20 steps in a row"):
        backward.take_in_turn(loss_of, optimizer.step)


def test_a_gradient_of_zero_takes_no_step() -> None:
    """A head that no image trains has a loss of 0 in place of none; Adam would move it."""
    model, optimizer, backward, x = setting(weighting="Uncertainty")
    backward.take_in_turn(lambda task: model(x)[task], optimizer.step)
    before = [p.detach().clone() for p in model.parameters()]
    backward.take_in_turn(lambda task: 0.0 * model(x)[task], optimizer.step)
    assert backward.last.tasks == ()
    assert all(map(torch.equal, before, model.parameters()))
    moments = backward.weighting.state_dict()["moments"]
    assert {steps for _, _, steps in moments.values()} == {1}


def test_a_loss_scaler_takes_each_step_by_itself() -> None:
    """Clipped after unscaling, with a step that overflows: the scaler updates once a task."""
    model, optimizer, backward, _ = setting()
    expected, other, _, _ = setting()
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4) for _ in range(2)]

    def step(one: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        scaler.unscale_(one)
        torch.nn.utils.clip_grad_norm_([p for g in one.param_groups for p in g["params"]], 0.1)
        scaler.step(one)
        scaler.update()

    def loss_of(net: Trunk, task: str, x: Tensor, number: int) -> Tensor | None:
        if (task, number) == ("c", 1):
            return None
        loss = net(x)[task]
        return loss * (1e38 if (task, number) == ("b", 2) else 1.0)

    for number in range(4):
        x = torch.randn(8, 6)
        backward.take_in_turn(
            lambda task, x=x, number=number: loss_of(model, task, x, number),
            lambda: step(optimizer, scalers[0]),
            lambda: scalers[0].scale(torch.ones(())),
        )
        for task in TASKS:
            other.zero_grad(set_to_none=True)
            if (loss := loss_of(expected, task, x, number)) is not None:
                scalers[1].scale(loss).backward()
                step(other, scalers[1])
        assert backward.last.nonfinite == (("b",) if number == 2 else ())
    pairs = zip(model.parameters(), expected.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    assert scalers[0].state_dict() == scalers[1].state_dict()


def test_the_common_step_is_refused() -> None:
    model, _, backward, x = setting()
    with pytest.raises(RuntimeError, match="take_in_turn"):
        backward(model(x))
    backward = MultiTaskBackward(model.parameters(), Sequential())
    with pytest.raises(ValueError, match="tasks: Sequential"):
        backward.take_in_turn(lambda task: model(x)[task], lambda: None)
