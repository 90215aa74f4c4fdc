"""A loss or gradient that is NaN or infinite."""

from __future__ import annotations

import re

import pytest
import torch
from models import FEATURE_METHODS, ORDINARY, method
from torch import Tensor

from mtl_plugins import MultiTaskBackward

WAYS = [{}, {"low_memory": True}, {"gramian": "sketch"}, {"gramian": "sketch", "sketch_rows": 2}]


@pytest.mark.parametrize(
    "name, level",
    [(name, "parameter") for name in ORDINARY] + [(name, "feature") for name in FEATURE_METHODS],
)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_skipped_by_the_optimizer(name, level, broken, trunk, x, caplog):
    """SGD with momentum and weight decay: any gradient at all, even 0, would be a step."""
    representation = trunk.trunk if level == "feature" else None
    backward = MultiTaskBackward(
        trunk.parameters(), method(name), level=level, representation=representation
    )
    optimizer = torch.optim.SGD(trunk.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)

    def step(factor: float) -> list[Tensor]:
        optimizer.zero_grad()
        losses = trunk(x)
        backward(losses | {"c": factor * losses["c"]})
        optimizer.step()
        return [p.detach().clone() for p in trunk.parameters()]

    before, after = step(1.0), step(broken)
    assert all(torch.equal(p, q) for p, q in zip(before, after, strict=True))
    assert backward.last.nonfinite == ("c",)
    assert re.search(f"the loss of task 'c' is -?{broken}; 1 in a row", caplog.text)
    later = step(1.0)
    assert backward.last.nonfinite == ()
    assert all(p.isfinite().all() for p in later)
    assert not torch.equal(later[0], after[0])


@pytest.mark.parametrize("options", WAYS)
def test_gradient_alone(options, trunk, x, caplog):
    """The loss is 0, its gradient 0 · inf."""
    losses = trunk(x)
    losses["b"] = (losses["b"] * 0.0).sqrt()
    backward = MultiTaskBackward(trunk.parameters(), "MGDA", **options)
    backward(losses)
    assert all(p.grad is None for p in trunk.parameters())
    assert "the gradient of task 'b' is not finite" in caplog.text


@pytest.mark.parametrize(
    ("name", "options"),
    [("Sum", {}), *(("PCGrad", options) for options in WAYS)],
)
def test_first_of_two_micro_batches(name, options, trunk, x):
    backward = MultiTaskBackward(trunk.parameters(), name, **options)
    backward({k: loss * torch.nan for k, loss in trunk(x).items()}, aggregate=False)
    backward(trunk(x))
    assert all(p.grad is None for p in trunk.parameters())


@pytest.mark.parametrize("name", ["Sum", "PCGrad"])
def test_visible_for_the_loss_scaler(name, trunk, x):
    losses = trunk(x)
    losses["c"] = losses["c"] * torch.inf
    MultiTaskBackward(trunk.parameters(), name)(losses, scale=torch.tensor(8.0))
    assert all(p.grad.isnan().all() for p in trunk.parameters())


def test_raise(trunk, x):
    backward = MultiTaskBackward(trunk.parameters(), on_nonfinite="raise")
    with pytest.raises(FloatingPointError, match="loss of task 'a' is nan"):
        backward(trunk(x * torch.nan))


def test_too_many_in_a_row(trunk, x):
    backward = MultiTaskBackward(trunk.parameters(), "MGDA", max_skips=3)
    for _ in range(2):
        for _ in range(2):
            backward(trunk(x * torch.nan))
        backward(trunk(x))  # starts the count anew
    backward(trunk(x * torch.nan))
    backward(trunk(x * torch.nan))
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        backward(trunk(x * torch.nan))


def test_memory_of_the_method_is_left_alone(trunk, x):
    backward = MultiTaskBackward(trunk.parameters(), method("GradVac"))
    backward(trunk(x))
    before = backward.state_dict()["aggregator"]["state"]
    backward(trunk(x * torch.nan))
    after = backward.state_dict()["aggregator"]["state"]
    assert torch.equal(before["generator"], after["generator"])
    assert torch.equal(before["target"], after["target"])
