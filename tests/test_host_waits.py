"""How often a step waits for the device, and that nothing in it mixes devices, without a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from models import FEATURE_METHODS, GRADIENT_METHODS, Trunk, method
from pretend_device import Away, fetched, pretending, send
from torch import Tensor, nn
from torch.testing import assert_close

from mtl_plugins import MultiTaskBackward, sketch
from mtl_plugins.aggregation import graddrop
from mtl_plugins.draws import RandomMethod
from mtl_plugins.layer_conflicts import LayerConflicts
from mtl_plugins.weighting import WEIGHTINGS

STEPS = 3
# These need values from the device that depend on those of earlier steps, or of their own kind.
TWO_WAITS = {"ExcessMTL", "GCond", "GradVacByParameter", "MoCo"}
NEEDED: dict[str, dict[str, Any]] = {
    "Achievement": {"potential": dict.fromkeys("abcd", 0.5)},
    "DWA": {"window": 1},
    "FAMO": {"min_losses": -2.0},
    "Fixed": {"weights": {"a": 1.0, "b": 2.0, "c": 1.0, "d": 1.0}},
    "RLW": {"seed": 3},
}


@pytest.fixture
def draws_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has no generator; its draws are the CPU's."""
    real = graddrop._uniform
    on_cpu: Callable[..., torch.Generator] = lambda self, device: torch.Generator().manual_seed(  # noqa: E731
        self.draw_seed()
    )
    monkeypatch.setattr(RandomMethod, "device_generator", on_cpu)
    monkeypatch.setattr(graddrop, "_uniform", lambda *args: Away(real(*args)))
    normal = sketch._normal
    monkeypatch.setattr(sketch, "_normal", lambda *args: Away(normal(*args)))


def new_model() -> Trunk:
    torch.manual_seed(0)
    return Trunk()


def train(
    model: Trunk,
    x: Tensor,
    scale: Tensor | None = None,
    level: str = "parameter",
    without: str = "",
    prepare: Callable[[MultiTaskBackward, nn.Module], None] = lambda backward, model: None,
    waits: list[str] | None = None,
    **options: Any,
) -> list[str]:
    """Takes some steps; what the last one waits for."""
    at = {"feature": {"representation": model.trunk}, "layers": {"layers": model.trunk[2]}}
    backward = MultiTaskBackward(
        model.parameters(), level=level, tasks="abcd", **at.get(level, {}), **options
    )
    found: list[str] = []
    for _ in range(STEPS):
        model.zero_grad()
        prepare(backward, model)
        losses = {name: loss for name, loss in model(x).items() if name not in without}
        if waits is not None:
            waits.clear()
        backward(losses, scale=scale)
        found = list(waits or ())
        if backward.weighting is not None and backward.weighting.needs_new_losses:
            backward.after_step(losses)
    return found


def waits_of(scale: float | None = None, **options: Any) -> list[str]:
    """Waits in a step on the device, whose gradients are those on the CPU."""
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    here, there = new_model(), send(new_model())
    number = None if scale is None else torch.tensor(scale)
    with pretending() as waits:
        found = train(
            there,
            Away(x),
            None if number is None else Away(number),
            waits=waits.places,
            **options,
        )
    if options.get("aggregator", {}).get("type") != "GradDrop":  # whose draws are patched
        train(here, x, number, **options)
        for p, q in zip(here.parameters(), there.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                assert_close(fetched(q.grad), p.grad)
    return found


@pytest.mark.parametrize("name", ["Sum", "Mean"])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_the_plain_sum_waits_for_nothing(name, scale):
    assert waits_of(aggregator={"type": name}, scale=scale) == []


@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize("without", ["", "c"])
@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_a_method_waits_for_the_gramian(name, without, scale, draws_elsewhere):
    """With a loss scale, and with a task that the batch lacks, too."""
    found = waits_of(aggregator=method(name), without=without, scale=scale)
    assert len(found) == 1 + (name in TWO_WAITS), found


@pytest.mark.parametrize("name", FEATURE_METHODS)
def test_at_the_feature_level(name, draws_elsewhere):
    assert len(waits_of(aggregator=method(name), level="feature", scale=8.0)) == 1


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"level": "layers", "without": "d"}, 1),  # which does not reach the layer
        ({"low_memory": True}, 1),
        ({"low_memory": True, "scale": 8.0}, 1),
        ({"gramian": "sketch"}, 1),
        ({"gramian": "sketch", "sketch_rows": 2, "scale": 8.0}, 1),
        ({"weights_every": STEPS}, 0),
        ({"regularizer": "CosReg"}, 2),  # in so small a graph, what is shared is read off gradients
        ({"heads": "weighted"}, 1),
    ],
)
def test_other_ways(options, count, draws_elsewhere):
    found = waits_of(aggregator=method("PCGrad"), **options)
    assert len(found) == count, found


@pytest.mark.parametrize("aggregator", ["Sum", "CAGrad"])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_weighting_waits_for_nothing_more(name, aggregator):
    weighting = {"type": name} | NEEDED.get(name, {})
    found = waits_of(aggregator=method(aggregator), weighting=weighting, scale=8.0)
    assert len(found) == (aggregator != "Sum"), found


def monitor(backward: MultiTaskBackward, model: nn.Module) -> None:
    backward.monitor = True


def monitor_features(backward: MultiTaskBackward, model: nn.Module) -> None:
    if backward.last is None:
        backward.watch(model.trunk)
    backward.monitor_features = True


def monitor_layers(backward: MultiTaskBackward, model: nn.Module) -> None:
    if backward.last is None:
        backward.watch_layers(LayerConflicts(model))
    backward.monitor_layers = True


@pytest.mark.parametrize("prepare", [monitor, monitor_features, monitor_layers])
def test_measures_for_hooks(prepare):
    """Measures of a method that takes gradients come with the Gramian."""
    assert len(waits_of(aggregator=method("PCGrad"), prepare=prepare)) == 1


def test_a_model_that_moves_after_the_start():
    """The optimizer allows that, too."""
    model = new_model()
    backward = MultiTaskBackward(model.parameters(), "PCGrad")
    params: Mapping[int, nn.Parameter] = dict(enumerate(send(model).parameters()))
    for i, p in params.items():  # as Module.to() changes them in place; here they are new
        backward.params[i] = p
    with pretending():
        backward(model(Away(torch.ones(5, 6))))
    assert isinstance(model.trunk[0].weight.grad, Away)


def test_the_net_catches_what_it_is_for():
    """A tensor on the CPU where one on the device belongs; a value that the host reads."""
    with pretending() as waits:
        rows = Away(torch.ones(2, 3))
        with pytest.raises(RuntimeError, match="mm: tensors on the CPU and on the device"):
            rows.T @ torch.ones(2, 1)
        with pytest.raises(RuntimeError, match="a copy that the host waits for"):
            rows + torch.tensor([1.0, 2.0, 3.0], device=rows.device)
        assert waits.places == []
        assert float(rows.sum()) == 6.0
        assert rows[rows > 0.0].numel() == 6
        assert rows.cpu().sum() == 6.0
        assert [place.split(" in ")[0] for place in waits.places] == [
            "_local_scalar_dense",
            "index by a mask",
            "copy",
        ]
