"""Two processes over NCCL, where there are two GPUs."""

from __future__ import annotations

import pytest
import torch
from gpu_check.ranks import distance

TWO = torch.cuda.device_count() > 1


@pytest.mark.parametrize("device", ["cuda"] if TWO else [])
def test_half_a_batch_each(device):
    assert distance(device) <= 1e-4
