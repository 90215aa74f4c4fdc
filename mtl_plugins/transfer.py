"""Copies between the CPU and a device that the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A copy on the CPU that is started now and waited for when it is read.

    Args:
        tensor: Small tensor to copy.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(tensor.device))
        else:
            self._copy = tensor.cpu()

    def read(self) -> Tensor:
        """Return the copy; wait for the work that precedes it on the device, and for no other."""
        if self._done is not None:
            self._done.synchronize()
        return self._copy


def send(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a few numbers to a device.

    From memory that is not pinned, as ``Tensor.to`` copies, the host would wait for the device.

    Args:
        values: Numbers, on the CPU or on the device already.
        device: Device to copy to.
        dtype: Dtype of the copy; that of ``values`` by default.
    """
    values = values.to(dtype or values.dtype)
    return values if values.device == device else _send(values, device)


def _send(values: Tensor, device: torch.device) -> Tensor:
    pinned = values.pin_memory() if device.type == "cuda" and not values.is_cuda else values
    return pinned.to(device, non_blocking=pinned is not values)
