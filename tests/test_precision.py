"""The rules of mixed precision that the adapters share."""

from __future__ import annotations

import pytest
import torch

from mtl_plugins.precision import cpu_precision, gradient_scale, scaler_for

CPU = torch.device("cpu")


def test_a_scaler_that_is_on():
    """The scale is that of the scaler, which is ready for a step afterwards."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    parameter = torch.nn.Parameter(torch.ones(()))
    scale = gradient_scale(scaler, CPU)
    assert scale == 8.0
    parameter.grad = scale * 2.0
    scaler.step(torch.optim.SGD([parameter], lr=0.25))
    assert parameter.item() == 0.5  # 1 - 0.25 * 2


def test_a_cpu_goes_without():
    assert gradient_scale(scaler_for(CPU), CPU) is None


@pytest.mark.parametrize("asked", [None, "bfloat16", torch.bfloat16])
def test_a_cpu_trains_in_bfloat16(asked):
    assert cpu_precision(asked, "dtype") is torch.bfloat16


@pytest.mark.parametrize("asked", ["float16", torch.float16, torch.float32])
def test_and_in_nothing_else(asked):
    with pytest.raises(ValueError, match="amp.dtype: a CPU trains in 'bfloat16', got"):
        cpu_precision(asked, "amp.dtype")
