"""Forward passes once more, against the same model called by hand with the same draws."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mtl_plugins.replay import Replay


class Noisy(nn.Module):
    """Draws random numbers, and counts batches in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, *, mode: str = "loss", factor: float = 1.0) -> dict[str, Tensor]:
        z = self.layers(x) + torch.randn(6, dtype=x.dtype)
        return {"loss": self.head(z).square().mean() * factor}


class OnlyLosses(Replay):
    def counts(self, kwargs) -> bool:
        return kwargs.get("mode") == "loss"


@pytest.fixture
def model() -> Noisy:
    torch.manual_seed(0)
    return Noisy().double()


@pytest.fixture
def batches() -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return list(torch.randn(3, 5, 4, generator=rng, dtype=torch.float64))


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)


def by_hand(model: nn.Module, batch: Tensor, state: Tensor, **kwargs: float) -> Tensor:
    """The loss of a copy of the model as it is, with the generator in that state."""
    with torch.random.fork_rng([]):
        torch.set_rng_state(state)
        return copy.deepcopy(model)(batch, **kwargs)["loss"].detach()


def test_unchanged_model_gives_the_same(model, batches):
    replay = Replay(model)
    losses = [model(batch)["loss"] for batch in batches]
    again = replay.outputs()
    assert [loss["loss"].item() for loss in again] == [loss.item() for loss in losses]


def test_changed_model_with_the_same_batches_and_draws(model, batches):
    twin = copy.deepcopy(model)  # without the hook
    replay = Replay(model)
    states, losses = [], []
    for number, batch in enumerate(batches):
        states.append(torch.get_rng_state())
        losses.append(model(batch, factor=number + 1.0)["loss"].item())
    change(model)
    change(twin)
    again = [output["loss"].item() for output in replay.outputs()]
    expected = [
        by_hand(twin, batch, state, factor=number + 1.0).item()
        for number, (batch, state) in enumerate(zip(batches, states, strict=True))
    ]
    assert again == expected
    assert all(new != old for new, old in zip(again, losses, strict=True))


def test_nothing_else_changes(model, batches):
    replay = Replay(model)
    model(batches[0])["loss"].backward()
    change(model)
    before = copy.deepcopy(model.state_dict())
    grads = [p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    (output,) = replay.outputs()
    assert not output["loss"].requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert model.training


def test_each_call_is_replayed_once(model, batches):
    replay = Replay(model)
    assert replay.outputs() == []
    model(batches[0])
    model(batches[1])
    assert len(replay.outputs()) == 2
    assert replay.outputs() == []  # nor is a replay itself noted
    model(batches[2])
    assert len(replay.outputs()) == 1


def test_calls_that_do_not_train_are_not_replayed(model, batches):
    replay = OnlyLosses(model)
    with torch.no_grad():
        model(batches[0], mode="loss")
    model.eval()
    model(batches[0], mode="loss")
    model.train()
    model(batches[0], mode="predict")
    assert replay.outputs() == []
    model(batches[0], mode="loss")
    assert len(replay.outputs()) == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_precision_is_that_of_the_call(enabled, batches):
    """Whatever it is when the losses are wanted."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    replay = Replay(model)
    x = batches[0].float()
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        first = model(x)
    with torch.autocast("cpu", torch.bfloat16, enabled=not enabled):
        (again,) = replay.outputs()
    assert again.dtype == first.dtype == (torch.bfloat16 if enabled else torch.float32)
    assert torch.equal(again, first)
