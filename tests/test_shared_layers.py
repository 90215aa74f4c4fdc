"""Layers of heads that several losses share, at the feature level."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from by_autograd import per_task
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mtl_plugins import MultiTaskBackward

X = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Heads(nn.Module):
    """A trunk, layers that two losses share, and a layer of each loss.

    ``between`` is what lies between trunk and losses; the losses see its result.
    """

    def __init__(self, between: Callable[[Heads, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.trunk = nn.Conv2d(2, 4, 3)
        self.conv, self.again = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.linear, self.up = nn.Linear(4, 4), nn.ConvTranspose2d(4, 4, 2)
        self.norm, self.attention = nn.BatchNorm2d(4), nn.MultiheadAttention(4, 2)
        self.query = nn.Parameter(torch.randn(5, 4))
        self.own = nn.ModuleDict({name: nn.Conv2d(4, 1, 1) for name in "ab"})
        self.double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        shared = self.between(self, z)
        return {
            "a": self.own["a"](shared).square().mean(),
            "b": self.own["b"](shared).exp().mean(),
            "c": self.own["b"](z).sin().mean(),  # a layer of two losses, here without the others
        }


def by_rows(layer: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return layer(z.movedim(1, -1)).movedim(-1, 1)


def with_hook(model: Heads, z: Tensor) -> Tensor:
    y = model.conv(z)
    y.register_hook(lambda grad: 3.0 * grad)
    return y


def attended(model: Heads, z: Tensor) -> Tensor:
    rows = z.flatten(2).movedim(2, 0)
    found, _ = model.attention(model.linear(model.query)[:, None].expand(-1, 3, -1), rows, rows)
    return found.movedim(0, 2)[..., None]


BETWEEN: dict[str, Callable[[Heads, Tensor], Tensor]] = {
    "convolutions": lambda m, z: m.again(m.conv(z).relu()),
    "transposed": lambda m, z: m.up(z),
    "linear": lambda m, z: by_rows(m.linear, z),
    "no bias": lambda m, z: by_rows(lambda x: x @ m.linear.weight, z),
    "norm": lambda m, z: m.norm(m.conv(z)),
    "attention, query": attended,
    "several times side by side": lambda m, z: m.conv(z) + m.conv(2.0 * z),
    "again and again": lambda m, z: m.conv(m.conv(m.conv(z).tanh()).tanh()),
    "in another way, too": lambda m, z: m.conv(z) * m.conv.weight.square().sum(),
    "computed weight": lambda m, z: functional.conv2d(z, m.again.weight / m.again.weight.norm()),
    "hook on the output": with_hook,
    "checkpoint": lambda m, z: checkpoint(m.conv, z, use_reentrant=False),
    "reentrant checkpoint": lambda m, z: checkpoint(m.conv, z, use_reentrant=True),
    "in place": lambda m, z: m.conv(m.again(z).relu_()).mul_(2.0),
}

PLAIN = {how: lambda m, z: m.conv(z) for how in BETWEEN if how.endswith("checkpoint")}


def step(model: Heads, **options: Any) -> MultiTaskBackward:
    backward = MultiTaskBackward(
        model.parameters(), "MGDA", level="feature", representation=model.trunk, **options
    )
    backward(model(X))
    return backward


@pytest.mark.parametrize("how", BETWEEN)
def test_gradients_of_the_sum(how: str) -> None:
    """Heads get the gradient of the summed losses, and each task its gradient of the features."""
    model, plain = Heads(BETWEEN[how]), Heads(PLAIN.get(how, BETWEEN[how]))
    for m in (model, plain):  # as for a rate of their own, or a part that is pruned
        m.conv.weight.register_hook(lambda grad: 0.5 * grad)
        m.linear.bias.register_hook(lambda grad: 0.5 * grad)
    backward = step(model)
    sum(plain(X).values()).backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        if not name.startswith("trunk"):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None:
                assert_close(p.grad, q.grad, msg=lambda text, name=name: f"{name}: {text}")
                assert p.grad.stride() == q.grad.stride()

    features: list[Tensor] = []
    plain.trunk.register_forward_hook(lambda *args: features.append(args[2]))
    losses = plain(X)
    rows = torch.stack([grad.flatten() for (grad,) in per_task(losses, features)])
    assert_close(backward.last.gramian.double(), rows @ rows.T)


class Passes(TorchDispatchMode):
    """Counts the gradients of inputs and of weights that convolutions compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            of_input, of_weight, _ = args[-1]
            self.count.update(input=of_input, weight=of_weight)
        return func(*args, **(kwargs or {}))


def test_weights_of_shared_layers_are_run_back_once() -> None:
    model = Heads(BETWEEN["convolutions"])
    with Passes() as passes:
        step(model)
    # To the features: own layer, ``again`` and ``conv`` for "a" and "b", and "c" by b's own layer.
    # Weights: ``again``, ``conv``, b's own layer at two places, a's own layer, and the trunk.
    assert passes.count == {"input": 7, "weight": 6}


def test_no_weight_where_only_hooks_ask() -> None:
    """The measures for hooks need no gradient of the heads."""
    model = Heads(BETWEEN["convolutions"])
    backward = MultiTaskBackward(
        model.parameters(), "Sum", level="feature", representation=model.trunk
    )
    backward.monitor = True
    with Passes() as passes:
        backward(model(X))
    # The pass of the sum takes all six. Those of the hooks leave out ``again`` and ``conv``, and
    # whatever is before the features.
    assert passes.count["weight"] == 6 + 3
    assert backward.last.gramian.shape == (3, 3)


def test_gradients_add_up() -> None:
    """Over micro-batches, onto what is there."""
    model, plain = Heads(BETWEEN["convolutions"]), Heads(BETWEEN["convolutions"])
    backward = step(model)
    backward(model(2.0 * X))
    sum(plain(X).values()).backward()
    sum(plain(2.0 * X).values()).backward()
    assert_close(model.conv.weight.grad, plain.conv.weight.grad)
    assert_close(model.own["b"].bias.grad, plain.own["b"].bias.grad)


def test_channels_last_stays() -> None:
    """Fused optimizers rely on gradients in the layout of their parameters."""
    model = Heads(BETWEEN["convolutions"]).to(memory_format=torch.channels_last)
    step(model)
    for layer in (model.conv, model.again, model.own["b"]):
        assert layer.weight.grad.stride() == layer.weight.stride()


def test_autocast() -> None:
    """Weights are cast before they are used; gradients come in the parameter's dtype."""
    model, plain = (Heads(BETWEEN["convolutions"]).float() for _ in range(2))
    backward = MultiTaskBackward(
        model.parameters(), "MGDA", level="feature", representation=model.trunk
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, expected = model(X.float()), plain(X.float())
    backward(losses)
    sum(expected.values()).backward()
    for name in ("conv", "again"):
        mine, theirs = getattr(model, name).weight.grad, getattr(plain, name).weight.grad
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.02 * theirs.norm()
