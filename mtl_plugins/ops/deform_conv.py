"""Deformable convolution, plain and modulated, over torchvision's operator.

Shapes: ``input`` (N, C, H, W); ``offset`` (N, 2 * groups * kh * kw, H', W') as y, x pairs in
cells of the input; ``mask`` (N, groups * kh * kw, H', W') scales the samples of the modulated form;
``weight`` (C', C / groups, kh, kw); ``bias`` (C',).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """Options that say how the kernel moves.

    Attributes:
        stride: Step of the kernel in cells, vertically and horizontally.
        padding: Cells of zeros around the input.
        dilation: Distance of the taps of the kernel in cells.
        groups: Groups of channels that are convolved apart.
        offset_groups: Groups of channels with offsets and masks of their own.
    """

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    offset_groups: int


class Operands(NamedTuple):
    """Tensors that are convolved; the plain form has no mask and no bias."""

    input: Tensor
    weight: Tensor
    offset: Tensor
    mask: Tensor | None = None
    bias: Tensor | None = None


def forward(operands: Operands, geometry: Geometry) -> Tensor:
    """Return the convolution (N, C', H', W'), outside autograd."""
    tensors, options = _arguments(operands, geometry)
    output: Tensor = torch.ops.torchvision.deform_conv2d(*tensors, *options)
    return output.to(operands.input.dtype)


def backward(grad: Tensor, operands: Operands, geometry: Geometry) -> tuple[Tensor, ...]:
    """Return the derivatives of ``(forward(operands) * grad).sum()``, in the operands' order."""
    tensors, options = _arguments(operands, geometry)
    grads = torch.ops.torchvision._deform_conv2d_backward(
        grad.to(tensors[0].dtype), *tensors, *options
    )
    return tuple(found.to(operands.input.dtype) for found in grads)


def _arguments(operands: Operands, geometry: Geometry) -> tuple[list[Tensor], list[int]]:
    values, weight, offset, mask, bias = operands
    # torchvision has no bfloat16 kernel, none for float16 on the CPU, and wants one type for all.
    dtype = torch.promote_types(values.dtype, torch.float32)
    absent_mask = offset.new_zeros(len(offset), 1)
    absent_bias = weight.new_zeros(len(weight))
    tensors = [
        values,
        weight,
        offset,
        absent_mask if mask is None else mask,
        absent_bias if bias is None else bias,
    ]
    stride, padding, dilation, groups, offset_groups = geometry
    options = [*stride, *padding, *dilation, groups, offset_groups, mask is not None]
    return [tensor.to(dtype) for tensor in tensors], options
