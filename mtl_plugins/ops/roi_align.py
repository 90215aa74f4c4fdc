"""RoIAlign with average pooling, differentiable any number of times in its input.

RoIAlign is linear in its input, so its derivative is its adjoint, whose derivative is RoIAlign
again. Shapes: ``input`` (N, C, H, W); ``rois`` (K, 5) as image index, x1, y1, x2, y2 in pixels of
the image; output (K, C, height, width).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor, nn
from torch.autograd import Function


class Sampling(NamedTuple):
    """Options that say how regions are sampled.

    Attributes:
        spatial_scale: Input cells per image pixel.
        height: Bins per region, vertically.
        width: Bins per region, horizontally.
        ratio: Samples per bin along each side; 0 takes ceil(region size / bins).
        aligned: Whether cell centres lie at half-integers; False is the legacy rule, which
            also widens regions to at least one cell.
    """

    spatial_scale: float
    height: int
    width: int
    ratio: int
    aligned: bool


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Pool regions bilinearly, with gradients of every order in ``input`` and none in ``rois``.

    Args:
        input: Feature maps (N, C, H, W).
        rois: Regions (K, 5) as image index, x1, y1, x2, y2 in pixels of the image.
        output_size: Bins per region as (height, width), or one number for both.
        spatial_scale: Input cells per image pixel.
        sampling_ratio: Samples per bin along each side; 0 takes ceil(region size / bins).
        aligned: Whether cell centres lie at half-integers, see :class:`Sampling`.

    Raises:
        RuntimeError: ``rois`` is not (K, 5).
    """
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    sampling = Sampling(spatial_scale, height, width, sampling_ratio, aligned)
    output: Tensor = _RoIAlign.apply(input, rois, input.shape, sampling, False)
    return output


def pool(input: Tensor, rois: Tensor, sampling: Sampling) -> Tensor:
    """Return the RoIAlign (K, C, height, width) of ``input``, outside autograd."""
    scale, height, width, ratio, aligned = sampling
    dtype = _kernel_dtype(input)
    output: Tensor = torch.ops.torchvision.roi_align(
        input.to(dtype), rois.to(dtype), scale, height, width, ratio, aligned
    )
    return output.to(input.dtype)


def adjoint(grad: Tensor, rois: Tensor, input_shape: Sequence[int], sampling: Sampling) -> Tensor:
    """Spread ``grad`` (K, C, height, width) back over ``input_shape``, outside autograd."""
    scale, height, width, ratio, aligned = sampling
    dtype = _kernel_dtype(grad)
    spread: Tensor = torch.ops.torchvision._roi_align_backward(
        grad.to(dtype), rois.to(dtype), scale, height, width, *input_shape, ratio, aligned
    )
    return spread.to(grad.dtype)


def _kernel_dtype(values: Tensor) -> torch.dtype:
    # torchvision has no bfloat16 kernel, none for float16 on the CPU, and wants one type for all.
    return torch.promote_types(values.dtype, torch.float32)


class _RoIAlign(Function):
    """``pool`` for autograd, or ``adjoint`` if ``spread``; either is the other's derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        rois: Tensor,
        input_shape: Sequence[int],
        sampling: Sampling,
        spread: bool,
    ) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.geometry, ctx.spread = (input_shape, sampling), spread
        if spread:
            return adjoint(values, rois, input_shape, sampling)
        return pool(values, rois, sampling)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (rois,) = ctx.saved_tensors
        return _RoIAlign.apply(grad, rois, *ctx.geometry, not ctx.spread), None, None, None, None


class TwiceDifferentiableRoIAlign(nn.Module):
    """RoIAlign layer of a framework, with gradients of every order.

    Args:
        layer: RoIAlign layer with average pooling, whose options are taken over.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.output_size = layer.output_size
        self.spatial_scale = layer.spatial_scale
        self.sampling_ratio = layer.sampling_ratio
        self.aligned = layer.aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return roi_align(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )


def exchange_roi_aligns(model: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Put a :class:`TwiceDifferentiableRoIAlign` in the place of each of ``layers``."""
    found = set(layers)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child in found:
                setattr(parent, name, TwiceDifferentiableRoIAlign(child))
