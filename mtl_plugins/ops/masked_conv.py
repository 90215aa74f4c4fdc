"""Columns of a convolution at chosen places, for inference of guided anchoring."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def columns_at(
    input: Tensor, y: Tensor, x: Tensor, kernel: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return the neighbourhoods (C * kh * kw, M) in (1, C, H, W) of the output cells y, x (M,)."""
    (height, width), (top, left) = kernel, padding
    padded = pad(input[0], (left, left, top, top))
    rows = y + torch.arange(height, device=y.device)[:, None, None]
    columns = x + torch.arange(width, device=x.device)[:, None]
    return padded[:, rows, columns].flatten(0, 2)
