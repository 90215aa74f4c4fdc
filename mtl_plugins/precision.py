"""Mixed precision: the factor of the gradients, and bfloat16 on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gradient_scale(scaler: torch.amp.GradScaler, device: torch.device) -> Tensor | None:
    """Return the factor by which ``scaler`` multiplies gradients, a scalar; None if it is off.

    Args:
        scaler: Loss scaler of the run.
        device: Device of the parameters.
    """
    if not scaler.is_enabled():
        return None
    # scale() and not get_scale(): the scaler makes its state when it first scales something, and
    # the device need not be waited for.
    return scaler.scale(torch.ones((), device=device))


def cpu_precision(asked: Any, key: str) -> torch.dtype:
    """Return the dtype of mixed precision on a CPU, which is bfloat16.

    Args:
        asked: Dtype in the config, or its name; None if the config has none.
        key: Config key of the dtype, for the error message.

    Raises:
        ValueError: Another dtype is asked for.
    """
    if asked not in (None, "bfloat16", torch.bfloat16):
        raise ValueError(f"{key}: a CPU trains in 'bfloat16', got {asked!r}")
    return torch.bfloat16


def scaler_for(device: torch.device) -> torch.amp.GradScaler:
    """Return a new loss scaler, switched off on a CPU, since bfloat16 does not underflow."""
    return torch.amp.GradScaler(device.type, enabled=device.type != "cpu")
