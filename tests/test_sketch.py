"""The sketched Gramian: unbiased, cheap, and followed by one pass of the weighted sum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from by_autograd import check_grads, expected_grads, flat, grads_of, per_task
from models import GRAMIAN_METHODS, method
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import build_aggregator
from mtl_plugins.matrix_uses import Product

SKETCH: dict[str, Any] = {"gramian": "sketch", "sketch_rows": 4}


class Net(nn.Module):
    """A trunk with layers of many kinds, and a head for each of three tasks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.twice = nn.Conv2d(8, 8, 3, padding="same", dilation=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.grouped = nn.Conv2d(8, 12, 3, groups=2)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.tokens = nn.Embedding(3, 12)
        self.heads = nn.ModuleDict({name: nn.Linear(12, 5) for name in "abc"})

    def trunk(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if "heads" not in name]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.norm(self.stem(x)).relu()
        y = self.depthwise(self.twice(self.twice(y)).relu())
        y = self.grouped(self.up(y)).flatten(2).mT
        y = self.attention(y, y, y, need_weights=False)[0]
        tokens = self.tokens(torch.arange(3)).expand(len(x), -1, -1)
        y = self.attention(y, tokens, tokens, need_weights=False)[0]
        return {
            name: (head(y) - i).pow(i + 1).mean()
            for i, (name, head) in enumerate(self.heads.items())
        }


@pytest.fixture
def net() -> Net:
    return Net().double()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)).double()


def gramian_of(losses: dict[str, Tensor], params: list[nn.Parameter]) -> Tensor:
    rows = torch.stack([flat(row, params) for row in per_task(losses, params)])
    return rows @ rows.T


def test_the_estimate_is_unbiased(net, images):
    """The mean over many draws is the Gramian, within four standard errors."""
    exact = gramian_of(net(images), net.trunk())
    backward = MultiTaskBackward(net.parameters(), "MGDA", **SKETCH)
    found = []
    for _ in range(100):
        backward(net(images))
        found.append(backward.last.gramian)
    mean, error = torch.stack(found).mean(dim=0), torch.stack(found).std(dim=0) / 10.0
    assert (error > 0.0).all()
    assert ((mean - exact).abs() < 4.0 * error).all()
    assert (error * 10.0 < 0.5 * exact.diagonal().outer(exact.diagonal()).sqrt()).all()


@pytest.mark.parametrize("name", GRAMIAN_METHODS)
def test_layers_with_few_columns_are_exact(name, net, images):
    params = list(net.parameters())
    expected = expected_grads(build_aggregator(method(name)), net(images), params)
    backward = MultiTaskBackward(params, method(name), gramian="sketch", sketch_rows=1000)
    backward(net(images))
    check_grads(params, expected)


@pytest.mark.parametrize("name", GRAMIAN_METHODS)
def test_the_weighted_sum_is_run_back(name, net, images):
    """By the method's weights for the sketched Gramian, and heads by their own losses."""
    params, losses = list(net.parameters()), net(images)
    backward = MultiTaskBackward(params, method(name), **SKETCH)
    backward(losses)
    last = backward.last
    weights = build_aggregator(method(name)).weights(last.gramian)
    assert_close(last.weights, weights)
    assert not torch.allclose(last.gramian, gramian_of(net(images), net.trunk()), rtol=1e-3)
    total = sum(w * loss for w, loss in zip(weights, net(images).values(), strict=True))
    for p, grad in zip(net.trunk(), torch.autograd.grad(total, net.trunk()), strict=True):
        assert_close(p.grad, grad)
    if name != "MCLGS":  # which weighs heads, too
        heads = list(net.heads.parameters())
        total = sum(net(images).values())
        check_grads(heads, torch.autograd.grad(total, heads))


def test_a_hook_on_a_weight_acts_on_its_gradient(net, images):
    """As for a rate of its own, or a part that is pruned: the method sees what the hook returns."""
    trained = [net.stem.weight, net.twice.weight]  # the first layer is exact in any case
    for p in net.trunk():
        p.requires_grad_(any(p is weight for weight in trained))
    net.twice.weight.register_hook(lambda grad: 0.5 * grad)
    exact = gramian_of(net(images), trained)
    backward = MultiTaskBackward(net.parameters(), "MGDA", **SKETCH)
    backward(net(images))
    assert_close(backward.last.gramian.double(), exact)


def test_tasks_in_another_order(net, images):
    found = []
    for names in ("abc", "cab"):
        losses = net(images)
        torch.manual_seed(7)
        backward = MultiTaskBackward(net.parameters(), "MGDA", **SKETCH)
        backward({name: losses[name] for name in names})
        found.append(backward.last.gramian)
    order = ["cab".index(name) for name in "abc"]
    assert_close(found[1][order][:, order], found[0])


def test_layers_that_are_frozen_for_some_steps(net, images):
    """As a hook freezes the first stages after a warm-up."""
    params = list(net.parameters())
    backward = MultiTaskBackward(params, "MGDA", gramian="sketch", sketch_rows=1000)
    for frozen in (False, True, False):
        for part in (net.stem, net.norm, net.twice):
            part.requires_grad_(not frozen)
        trained = [p for p in params if p.requires_grad]
        expected = expected_grads(build_aggregator("MGDA"), net(images), trained)
        backward(net(images))
        check_grads(trained, expected)
        assert not frozen or net.twice.weight.grad is None
        net.zero_grad()


class Detected(nn.Module):
    """A layer that is run on what was found, which may be nothing; and a sparse table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))
        self.table = nn.Embedding(4, 8, sparse=True)
        self.heads = nn.ModuleDict({name: nn.Linear(8, 2) for name in "abc"})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.layers(x)
        y = y + self.layers(x[:0]).sum() + self.table(torch.tensor([0, 3, 3])).sum(dim=0)
        return {
            name: (head(y) - i).sin().pow(i + 1).mean()
            for i, (name, head) in enumerate(self.heads.items())
        }


def test_layer_without_examples_and_sparse_gradients():
    net, x = Detected(), torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    shared = [*net.layers.parameters(), net.table.weight]
    rows = [[g.to_dense() for g in row] for row in per_task(net(x), shared)]
    flat_rows = torch.stack([flat(row, shared) for row in rows])
    backward = MultiTaskBackward(net.parameters(), "MGDA", **SKETCH)
    found = []
    for _ in range(100):
        backward(net(x))
        assert backward.last.nonfinite == ()
        found.append(backward.last.gramian)
    error = torch.stack(found).std(dim=0) / 10.0
    assert ((torch.stack(found).mean(dim=0) - flat_rows @ flat_rows.T).abs() < 4.0 * error).all()


class WeightGradients(TorchDispatchMode):
    """Counts the gradients of convolution kernels that are computed."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.count += args[-1][1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("options", "passes"), [({}, 3), (SKETCH, 1)])
def test_gradients_of_kernels_are_taken_once(options, passes, net, images):
    """Those of the first layer and of the transposed one, which are exact, in every pass."""
    backward = MultiTaskBackward(net.parameters(), "MGDA", **options)
    losses = net(images)
    with WeightGradients() as mode:
        backward(losses)
    sketched = 4  # uses, since one layer is used twice
    exact = 2 * (3 + bool(options))
    assert mode.count == sketched * passes + exact


def test_nothing_behind_the_last_layer(images):
    """Something that is not trained is differentiated by: the pass ends at the first layer."""
    net, images = Net().double(), images.requires_grad_()
    for part in (net.norm, net.stem.bias):
        part.requires_grad_(False)
    trained = [p for p in net.trunk() if p.requires_grad]
    exact = gramian_of(net(images), trained)
    backward = MultiTaskBackward(net.parameters(), "MGDA", **SKETCH)
    found = []
    for _ in range(60):
        backward(net(images))
        found.append(backward.last.gramian)
    mean, error = torch.stack(found).mean(dim=0), torch.stack(found).std(dim=0) / 60**0.5
    assert ((mean - exact).abs() < 4.0 * error).all()


def test_resumed_by_the_bit(net, images):
    params = list(net.parameters())
    torch.manual_seed(3)
    first = MultiTaskBackward(params, "PCGrad", **SKETCH)
    first(net(images))
    state = first.state_dict()
    net.zero_grad()
    torch.manual_seed(4)
    second = MultiTaskBackward(params, "PCGrad", **SKETCH)
    second.load_state_dict(state)
    grads = []
    for backward in (first, second):
        backward({k: loss for k, loss in net(images).items() if k != "b"})
        backward(net(images))
        grads.append(grads_of(net))
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def test_every_step_has_draws_of_its_own(net, images):
    backward = MultiTaskBackward(net.parameters(), "MGDA", **SKETCH)
    backward(net(images))
    before = backward.last.gramian
    backward(net(images))
    assert not torch.equal(backward.last.gramian, before)


def test_micro_batches_are_aggregated_each(net, images):
    params = list(net.parameters())
    backward = MultiTaskBackward(params, "MGDA", gramian="sketch", sketch_rows=1000)
    expected: list[Any] = [None] * len(params)
    for image in images.split(1):
        grads = expected_grads(build_aggregator("MGDA"), net(image), params)
        pairs = zip(grads, expected, strict=True)
        expected = [0.5 * g if e is None else e + 0.5 * g for g, e in pairs]
    first, second = images.split(1)
    backward(net(first), aggregate=False, share=0.5)
    backward(net(second), share=0.5)
    check_grads(params, expected)


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_mixed_precision(scale, images):
    """Sketches in bfloat16, unscaled for the method; gradients stay scaled in ``.grad``."""
    net = Net()
    factor = None if scale is None else torch.tensor(scale)

    def losses() -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return net(images.float())

    exact = gramian_of(losses(), net.trunk())
    backward = MultiTaskBackward(net.parameters(), "MGDA", gramian="sketch", sketch_rows=8)
    found = []
    for _ in range(50):
        net.zero_grad()
        backward(losses(), scale=factor)
        found.append(backward.last.gramian)
    assert backward.last.nonfinite == ()
    gramians = torch.stack(found)
    lengths = exact.diagonal().outer(exact.diagonal()).sqrt()
    error = gramians.std(dim=0) / 50**0.5 + 0.01 * lengths  # bfloat16 has 8 bits
    assert ((gramians.mean(dim=0) - exact).abs() < 4.0 * error).all()
    heads = list(net.heads.parameters())
    expected = torch.autograd.grad(sum(losses().values()) * (scale or 1.0), heads)
    for p, want in zip(heads, expected, strict=True):
        assert_close(p.grad, want, rtol=0.05, atol=0.01 * (scale or 1.0))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_is_refused(reentrant, net, images):
    inner = net.grouped.forward
    net.grouped.forward = lambda x: checkpoint(inner, x, use_reentrant=reentrant)
    backward = MultiTaskBackward(net.parameters(), "MGDA", **SKETCH)
    with pytest.raises(ValueError, match="gramian: 'sketch' .* activation checkpointing"):
        backward(net(images))
    assert all(p.grad is None for p in net.parameters())


def test_inputs_that_are_offloaded_are_refused(net, images):
    backward = MultiTaskBackward(net.parameters(), "MGDA", **SKETCH)
    with torch.autograd.graph.save_on_cpu():
        losses = net(images)
    with pytest.raises(ValueError, match="gramian: 'sketch' .* hooks on saved tensors"):
        backward(losses)


class Hidden(nn.Module):
    """A layer whose weight autograd does not see multiplied, as in a compiled model."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 16))
        self.heads = nn.ModuleDict({name: nn.Linear(8, 1) for name in "ab"})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = (self.weight * x[:, None]).sum(dim=2)
        return {name: head(y).square().mean() for name, head in self.heads.items()}


def test_model_without_a_layer_to_sketch():
    model = Hidden()
    backward = MultiTaskBackward(model.parameters(), "MGDA", **SKETCH)
    with pytest.raises(ValueError, match="gramian: .* none of the 1 large weights .* compiled"):
        backward(model(torch.randn(3, 16)))


class Turncoat(nn.Module):
    """A layer that is used otherwise once it was seen to be a matrix."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.ones(16))
        self.layer = nn.Linear(16, 8)
        self.heads = nn.ModuleDict({name: nn.Linear(8, 1) for name in "ab"})

    def forward(self, x: Tensor, hidden: bool) -> dict[str, Tensor]:
        x = self.scale * x
        y = (self.layer.weight * x[:, None]).sum(dim=2) if hidden else self.layer(x)
        return {name: head(y.tanh()).square().mean() for name, head in self.heads.items()}


def test_layer_that_is_used_otherwise_later(monkeypatch):
    """The columns stay, and the gradient itself is multiplied by the random rows."""
    monkeypatch.setattr(Product, "mean_input", lambda use: torch.zeros(16))  # not known then
    found = []
    for hidden in (False, True):
        model, x = Turncoat(), torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
        model.layer.bias.requires_grad_(False).zero_()
        torch.manual_seed(5)
        backward = MultiTaskBackward(model.parameters(), "MGDA", **SKETCH)
        backward(model(x, hidden=False))
        backward(model(x, hidden=hidden))
        found.append(backward.last.gramian)
    assert_close(*found)


def steps_with(options: dict[str, Any], net: Net, images: Tensor) -> Iterator[Tensor]:
    backward = MultiTaskBackward(net.parameters(), "MGDA", **options)
    for _ in range(4):
        backward.monitor = True
        backward(net(images))
        yield backward.last.gramian


def test_weights_that_hold_for_some_steps(net, images):
    """And the monitor's Gramians in between are sketches, too."""
    found = list(steps_with(SKETCH | {"weights_every": 2}, net, images))
    exact = gramian_of(net(images), net.trunk())
    for gramian in found:
        assert not torch.allclose(gramian, exact, rtol=1e-6)
    whole = list(steps_with({"gramian": "sketch", "sketch_rows": 999}, net, images))
    for gramian in whole:
        assert_close(gramian, exact)
