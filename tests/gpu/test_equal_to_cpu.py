"""A whole step on the GPU is that on the CPU: every method, at every level, in fp32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import FEATURE_METHODS, GRADIENT_METHODS, GRAMIAN_METHODS, Trunk, method
from torch import Tensor
from torch.testing import assert_close

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import AGGREGATORS

# GradDrop draws on the device of the gradients.
DETERMINISTIC = [name for name in GRADIENT_METHODS if name != "GradDrop"]
CASES: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in ["Sum", "Mean", *DETERMINISTIC]]
CASES += [(n, {"level": "feature"}) for n in FEATURE_METHODS if n != "GradDrop"]
CASES += [(n, {"level": "layers"}) for n in GRAMIAN_METHODS]
CASES += [(n, {"low_memory": True}) for n in GRAMIAN_METHODS]


def train(device: str, name: str, late: bool = False, **options: Any) -> list[Tensor | None]:
    """Gradients of the last of three steps, in double precision as the model is."""
    torch.manual_seed(0)
    model = Trunk().double()
    x = torch.randn(5, 6, dtype=torch.float64)
    model = model if late else model.to(device)
    level = options.get("level")
    at = {"feature": {"representation": model.trunk}, "layers": {"layers": model.trunk[2]}}
    backward = MultiTaskBackward(
        model.parameters(), method(name), tasks="abcd", **options, **at.get(level, {})
    )
    model.to(device)
    for _ in range(3):
        model.zero_grad()
        losses = model(x.to(device))
        if level == "layers":
            del losses["d"]  # which does not reach the layer
        backward(losses)
    return [None if p.grad is None else p.grad.cpu() for p in model.parameters()]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_step(name, options):
    assert_close(train("cuda", name, **options), train("cpu", name, **options))


def test_a_model_that_moves_after_the_start():
    assert_close(train("cuda", "PCGrad", late=True), train("cpu", "PCGrad"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_an_aggregator(name, dtype):
    """Of rows in each dtype; the tolerance is that of the dtype."""
    from mtl_plugins.aggregation import build_aggregator

    rows = torch.randn(4, 1000, generator=torch.Generator().manual_seed(2)).to(dtype)
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = []
    for device in ("cpu", "cuda"):
        there = rows.to(device)
        parameters = [torch.empty(1000, device=device)]
        update = build_aggregator(method(name)).on_parameters(there, parameters, None, losses)
        assert update.dtype == dtype and update.device.type == device
        found.append(update.cpu().double())
    # Methods divide by differences of inner products: a part of their accuracy is lost.
    loss = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}[dtype]
    assert (found[1] - found[0]).norm() <= loss * found[0].norm()


def test_graddrop_passes_one_sign():
    """In each coordinate, the positive gradients or the negative ones, whole."""
    rows = torch.randn(3, 4000, device="cuda")
    update = AGGREGATORS["GradDrop"](seed=3)(rows)
    signs = torch.stack([rows.clamp(min=0.0).sum(0), rows.clamp(max=0.0).sum(0)])
    assert torch.isclose(signs, update).any(dim=0).all()
    assert_close(AGGREGATORS["GradDrop"](seed=3)(rows.clone()), update)


def test_states_move():
    """A state that was saved on the GPU goes on there after it went over the CPU."""
    rows = torch.randn(3, 100, device="cuda")
    for name in ("MoCo", "DBMTL", "GCond", "ExcessMTL"):
        first = AGGREGATORS[name](**{k: v for k, v in method(name).items() if k != "type"})
        first(rows)
        state = torch.utils._pytree.tree_map_only(
            Tensor, lambda x: x.cpu(), copy.deepcopy(first.state_dict())
        )
        second = AGGREGATORS[name](**{k: v for k, v in method(name).items() if k != "type"})
        second.load_state_dict(state)
        assert_close(second(rows), first(rows))
