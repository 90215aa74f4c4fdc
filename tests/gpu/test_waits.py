"""How often a step waits for the GPU, as CUDA counts it; see tests/test_host_waits.py."""

from __future__ import annotations

import pytest
import torch
from gpu_check.methods import counted, wanted_waits
from models import FEATURE_METHODS, GRADIENT_METHODS, Trunk, method

from mtl_plugins import MultiTaskBackward
from mtl_plugins.transfer import HostCopy, send


def waits(name: str, scale: float | None = None, level: str = "parameter") -> list[str]:
    model = Trunk().cuda()
    x = torch.randn(5, 6, device="cuda")
    factor = None if scale is None else torch.tensor(scale, device="cuda")
    at = {"representation": model.trunk} if level == "feature" else {}
    backward = MultiTaskBackward(model.parameters(), method(name), level=level, tasks="abcd", **at)
    for _ in range(3):
        model.zero_grad()
        losses = model(x)
        with counted("cuda") as found:
            backward(losses, scale=factor)
    return found


@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize("name", ["Sum", "Mean", *GRADIENT_METHODS])
def test_at_the_parameter_level(name, scale):
    found = waits(name, scale)
    assert len(found) == wanted_waits(name), found


@pytest.mark.parametrize("name", FEATURE_METHODS)
def test_at_the_feature_level(name):
    found = waits(name, 8.0, "feature")
    assert len(found) == 1, found


def test_copies():
    """To and fro, without a wait that CUDA would count; read, they are complete."""
    values = torch.arange(1000.0, device="cuda")
    with counted("cuda") as found:
        copy = HostCopy(values * 2.0)
        back = send(torch.tensor([1.0, 2.0], dtype=torch.float64), values.device, torch.float32)
    assert found == []
    assert copy.read().tolist() == [2.0 * i for i in range(1000)]
    assert back.tolist() == [1.0, 2.0] and back.is_cuda and back.dtype == torch.float32
