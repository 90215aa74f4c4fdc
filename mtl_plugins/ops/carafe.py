"""CARAFE of Wang et al. (2019): upsampling with a kernel predicted for each output cell."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import unfold


def carafe(features: Tensor, masks: Tensor, size: int, groups: int, scale: int) -> Tensor:
    """Weigh the neighbourhood that each output cell has in ``features`` by the kernel of the cell.

    Args:
        features: Feature maps (N, C, H, W), zero outside.
        masks: Kernels (N, groups * size * size, scale * H, scale * W).
        size: Odd side of the kernels in cells of ``features``.
        groups: Groups of channels with kernels of their own.
        scale: Output cells per cell of ``features`` along each side.

    Returns:
        Upsampled features (N, C, scale * H, scale * W).
    """
    n, _, height, width = features.shape
    taps = size * size
    near = unfold(features, size, padding=size // 2)
    near = near.view(n, groups, -1, taps, height, width)
    kernels = masks.to(features.dtype).view(n, groups, taps, height, scale, width, scale)
    output = torch.einsum("ngckhw,ngkhawb->ngchawb", near, kernels)
    return output.reshape(n, -1, scale * height, scale * width).to(features.dtype)
