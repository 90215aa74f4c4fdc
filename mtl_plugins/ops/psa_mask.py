"""Attention masks of PSANet (Zhao et al. 2018), from masks relative to a cell to absolute ones."""

from __future__ import annotations

import torch
from torch import Tensor


def psa_mask(relative: Tensor, mask_size: tuple[int, int], distribute: bool) -> Tensor:
    """Return the attention of each cell to every cell; 0 outside the mask of the first cell.

    Args:
        relative: Attention (N, h * w, H, W) of the cell at y, x to the cell at
            y + i - (h - 1) // 2, x + j - (w - 1) // 2, in channel i * w + j.
        mask_size: Height h and width w of the masks in cells.
        distribute: Whether the second dimension of the result is the cell that has the mask;
            else the third and fourth are.

    Returns:
        Attention (N, H * W, H, W).
    """
    n, _, height, width = relative.shape
    y, inside_y = _steps(height, mask_size[0], relative.device)
    x, inside_x = _steps(width, mask_size[1], relative.device)
    # Dimensions: y and x of the other cell, y and x of the cell that has the mask.
    channel = y[:, None, :, None] * mask_size[1] + x[:, None, :]
    inside = inside_y[:, None, :, None] & inside_x[:, None, :]
    flat = (height * width, height, width)
    found = relative.gather(1, channel.reshape(flat).expand(n, *flat))
    found = torch.where(inside.reshape(flat), found, 0)
    return found.flatten(2).transpose(1, 2).view(n, *flat) if distribute else found


def _steps(cells: int, mask: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the place of cell i in the mask of cell j, clamped, and if inside: (cells, cells)."""
    cell = torch.arange(cells, device=device)
    place = cell[:, None] - cell + (mask - 1) // 2
    return place.clamp(0, mask - 1), (place >= 0) & (place < mask)
