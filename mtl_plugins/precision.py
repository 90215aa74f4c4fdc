"""Mixed precision: what the gradients are multiplied by, and how a CPU does without."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gradient_scale(scaler: torch.amp.GradScaler, device: torch.device) -> Tensor | None:
    """Returns what ``scaler`` multiplies the gradients by, a scalar; None if it is off.

    Args:
        scaler: Of the run.
        device: Of the parameters.
    """
    if not scaler.is_enabled():
        return None
    # scale() and not get_scale(): the scaler makes its state when it first scales something, and
    # the device need not be waited for.
    return scaler.scale(torch.ones((), device=device))


def cpu_precision(asked: Any, key: str) -> torch.dtype:
    """Returns the dtype of mixed precision on a CPU, which is bfloat16.

    Args:
        asked: What the config says, a dtype or its name; None if it says nothing.
        key: Where the config says it, for the error message.

    Raises:
        ValueError: Another one is asked for.
    """
    if asked not in (None, "bfloat16", torch.bfloat16):
        raise ValueError(f"{key}: a CPU trains in 'bfloat16', got {asked!r}")
    return torch.bfloat16


def scaler_for(device: torch.device) -> torch.amp.GradScaler:
    """Returns a new loss scaler; on a CPU one that is off, since bfloat16 does not underflow."""
    return torch.amp.GradScaler(device.type, enabled=device.type != "cpu")
