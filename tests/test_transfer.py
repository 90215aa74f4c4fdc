"""Copies on the CPU. On a device: see tests/gpu, and the waits counted on a pretended one."""

from __future__ import annotations

import torch

from mtl_plugins.transfer import HostCopy, send

CPU = torch.device("cpu")


def test_copy_on_the_cpu():
    assert HostCopy(torch.arange(3)).read().tolist() == [0, 1, 2]


def test_sending_converts():
    third = torch.tensor([1.0 / 3.0], dtype=torch.float64)
    assert send(third, CPU) is third
    assert send(third, CPU, torch.float32).item() == torch.tensor(1.0 / 3.0).item()
