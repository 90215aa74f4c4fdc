"""A loss scaler on the GPU, in fp16."""

from __future__ import annotations

import pytest
import torch
from models import Trunk
from torch.testing import assert_close

from mtl_plugins import MultiTaskBackward
from mtl_plugins.precision import gradient_scale


@pytest.fixture
def model() -> Trunk:
    torch.manual_seed(0)
    return Trunk().cuda()


def step(model: Trunk, scaler: torch.amp.GradScaler, backward: MultiTaskBackward, factor: float):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.autocast("cuda", torch.float16):
        losses = model(torch.ones(5, 6, device="cuda"))
    losses["c"] = losses["c"].float() * factor
    backward(losses, scale=gradient_scale(scaler, torch.device("cuda")))
    scaler.step(optimizer)
    scaler.update()


def test_a_task_that_overflows(model):
    scaler = torch.amp.GradScaler("cuda", init_scale=128.0)  # at which all else is finite
    backward = MultiTaskBackward(model.parameters(), "PCGrad")
    before = [p.detach().clone() for p in model.parameters()]
    step(model, scaler, backward, 1e38)
    assert backward.last.nonfinite == ("c",)
    assert_close([p.detach() for p in model.parameters()], before, rtol=0.0, atol=0.0)
    assert scaler.get_scale() == 64.0


def test_the_scale_changes_nothing(model):
    """In single precision, where nothing overflows."""
    found = []
    for scale in (None, torch.tensor(1024.0, device="cuda")):
        model.zero_grad()
        backward = MultiTaskBackward(model.parameters(), "CAGrad")
        backward(model(torch.ones(5, 6, device="cuda")), scale=scale)
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([g if scale is None else g / scale for g in grads])
    assert_close(found[1], found[0])
