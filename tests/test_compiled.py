"""A model whose parts are compiled trains as it does uncompiled, at every level."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._functorch.config
from torch import Tensor, nn
from torch.testing import assert_close

from mtl_plugins import MultiTaskBackward

WAYS: dict[str, dict[str, Any]] = {
    "parameter": {},
    "feature": {"level": "feature"},
    "layers": {"level": "layers"},
    "low memory": {"low_memory": True},
    "weights of two steps": {"weights_every": 2},
}


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    torch._dynamo.reset()


class Net(nn.Module):
    """A trunk and two heads, compiled apart from each other."""

    def __init__(self, backend: str | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Conv2d(8, 8, 3)
        self.heads = nn.ModuleList(nn.Conv2d(8, 1, 1) for _ in range(2))
        for part in (self.trunk, self.last, *self.heads) if backend else ():
            part.compile(backend=backend)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.last(self.trunk(x)).relu()
        return {str(t): (head(z) - t).square().mean() for t, head in enumerate(self.heads)}


def train(backend: str | None, aggregator: str, way: str) -> list[Tensor]:
    """Three steps; the parameters, and the gradients of the last one."""
    generator = torch.Generator().manual_seed(1)
    options = dict(WAYS[way])
    model = Net(backend)
    at = {"feature": {"representation": model.trunk}, "layers": {"layers": model.last}}
    backward = MultiTaskBackward(
        model.parameters(), aggregator, **options, **at.get(options.get("level", ""), {})
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        backward(model(torch.randn(2, 3, 12, 12, generator=generator)))
        optimizer.step()
    params = list(model.parameters())
    return [p.detach() for p in params] + [p.grad for p in params if p.grad is not None]


@pytest.mark.parametrize("way", WAYS)
def test_compiled_parts_train_as_they_are(way):
    assert_close(train("aot_eager", "PCGrad", way), train(None, "PCGrad", way))


@pytest.mark.parametrize("aggregator", ["Sum", "GradDrop"])
def test_other_methods(aggregator, monkeypatch):
    monkeypatch.setattr(torch, "initial_seed", lambda: 3)
    expected = train(None, aggregator, "parameter")
    assert_close(train("aot_eager", aggregator, "parameter"), expected)


@pytest.fixture
def donated() -> Iterator[None]:
    """PyTorch's default, which the first method of a process switches off."""
    with torch._functorch.config.patch(donated_buffer=True):
        yield


def test_a_model_that_was_run_back_before(donated):
    """Its passes overwrite activations, and PyTorch no longer says so."""
    model, x = Net("aot_eager"), torch.randn(2, 3, 12, 12)
    sum(model(x).values()).backward()
    backward = MultiTaskBackward(model.parameters(), "PCGrad")
    with pytest.raises(RuntimeError, match="donated_buffer = False before its first forward"):
        backward(model(x))


@pytest.mark.parametrize("aggregator", ["Sum", "PCGrad"])
def test_a_model_that_was_not(donated, aggregator):
    """What nothing was run through yet, and what is run back once, is fine."""
    model, x = Net("aot_eager"), torch.randn(2, 3, 12, 12)
    if aggregator == "Sum":
        sum(model(x).values()).backward()
        model.zero_grad()
    losses = model(x)
    MultiTaskBackward(model.parameters(), aggregator)(losses)
    plain = Net(None)
    MultiTaskBackward(plain.parameters(), aggregator)(plain(x))
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(p.grad, q.grad)
