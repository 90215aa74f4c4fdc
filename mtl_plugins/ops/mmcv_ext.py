"""Stand-in for ``mmcv._ext``: mmcv's calling convention over torch and torchvision operators.

The import system loads this file under the name ``mmcv._ext`` (see ``install.py``), hence the
absolute imports and the explicit logger name. mmcv passes tensors by position, among them the
outputs to fill, and options by keyword.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from mtl_plugins.ops import deform_conv, focal_loss
from mtl_plugins.ops.carafe import carafe
from mtl_plugins.ops.deform_conv import Geometry, Operands
from mtl_plugins.ops.masked_conv import columns_at
from mtl_plugins.ops.nms import nms, nms_match, soft_nms
from mtl_plugins.ops.psa_mask import psa_mask
from mtl_plugins.ops.roi_align import Sampling, adjoint, pool

__all__ = ["nms", "nms_match"]  # operators that already have mmcv's signature

logging.getLogger("mtl_plugins.ops").info(
    "mmcv has no compiled extension: torchvision stands in for some of its operators"
)


def __getattr__(name: str) -> Callable[..., NoReturn]:
    # mmcv.ops looks up every operator on import, so one without a stand-in can only fail later.
    if name.startswith("__"):
        raise AttributeError(name)
    return partial(_raise_missing, name)


def _raise_missing(operator: str, /, *_: object, **__: object) -> NoReturn:
    raise NotImplementedError(
        f"mmcv operator '{operator}' needs mmcv's compiled extension, which is not installed. If "
        "onedl-mmcv supports the installed torch, build it with torch, setuptools and a compiler "
        "in place: pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps "
        "--no-binary onedl-mmcv onedl-mmcv"
    )


def get_compiler_version() -> str:
    """Return text for environment reports."""
    return "not compiled (torchvision stand-in of mtl_plugins)"


def get_compiling_cuda_version() -> str:
    """Return text for environment reports, worded like a compiled mmcv without CUDA."""
    return "not available"


def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, **options: Any) -> Tensor:
    """Fill the head of ``dets`` with the kept rows and return the indices of the rows."""
    kept, keep = soft_nms(boxes, scores, **options)
    dets[: len(keep)] = kept
    return keep


def _filling_last(compute: Callable[..., Tensor]) -> Callable[..., None]:
    """Give ``compute`` mmcv's form: three inputs, any scratch space, the output to fill."""

    def operator(*tensors: Tensor, **options: float) -> None:
        tensors[-1].copy_(compute(*tensors[:3], **options))

    return operator


sigmoid_focal_loss_forward = _filling_last(focal_loss.sigmoid_loss)
sigmoid_focal_loss_backward = _filling_last(focal_loss.sigmoid_grad)
softmax_focal_loss_forward = _filling_last(focal_loss.softmax_loss)
softmax_focal_loss_backward = _filling_last(focal_loss.softmax_grad)


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, **options: Any
) -> None:
    """Fill ``output``; the ``argmax`` tensors serve max pooling and stay untouched."""
    output.copy_(pool(input, rois, _sampling(**options)))


def roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    **options: Any,
) -> None:
    """Fill ``grad_input``."""
    grad_input.copy_(adjoint(grad, rois, grad_input.shape, _sampling(**options)))


def _sampling(
    spatial_scale: float,
    aligned_height: int,
    aligned_width: int,
    sampling_ratio: int,
    aligned: bool,
    pool_mode: int,
) -> Sampling:
    if pool_mode != 1:
        _raise_missing("roi_align with pool_mode='max'")
    return Sampling(spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned)


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, *_: Tensor, **options: int
) -> None:
    """Fill ``output``."""
    output.copy_(deform_conv.forward(Operands(input, weight, offset), _plain(**options)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    *_: Tensor,
    **options: int,
) -> None:
    """Fill ``grad_input`` and ``grad_offset``."""
    found = deform_conv.backward(grad, Operands(input, weight, offset), _plain(**options))
    _fill((grad_input, grad_offset), (found[0], found[2]))


def deform_conv_backward_parameters(
    input: Tensor, offset: Tensor, grad: Tensor, grad_weight: Tensor, *_: Tensor, **options: int
) -> None:
    """Fill ``grad_weight``, whose values do not depend on the values of the weight."""
    found = deform_conv.backward(grad, Operands(input, grad_weight, offset), _plain(**options))
    grad_weight.copy_(found[1])


def _plain(
    *,
    dH: int,
    dW: int,
    padH: int,
    padW: int,
    dilationH: int,
    dilationW: int,
    group: int,
    deformable_group: int,
    **_: int,
) -> Geometry:
    return Geometry((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **options: int,
) -> None:
    """Fill ``output``."""
    offset, mask = _planes(offset, output), _planes(mask, output)
    operands = Operands(input, weight, offset, mask, bias if with_bias else None)
    output.copy_(deform_conv.forward(operands, _modulated(**options)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad: Tensor,
    *,
    with_bias: bool,
    **options: int,
) -> None:
    """Fill the gradients; without a bias, ``grad_bias`` is empty and stays so."""
    offset, mask = _planes(offset, grad), _planes(mask, grad)
    operands = Operands(input, weight, offset, mask, bias if with_bias else None)
    found = deform_conv.backward(grad, operands, _modulated(**options))
    grad_offset, grad_mask = _planes(grad_offset, grad), _planes(grad_mask, grad)
    grads = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    count = len(grads) if with_bias else len(grads) - 1
    _fill(grads[:count], found[:count])


def _planes(values: Tensor, output: Tensor) -> Tensor:
    """Return the first cells of each image as planes of the size of ``output``.

    The compiled operator reads offsets and masks of any size like that, and DyHead hands over the
    offsets and masks of the next larger level. With too few cells, torchvision raises its error.
    """
    channels, (height, width) = values.shape[1], output.shape[2:]
    cells = values.flatten(1)[:, : channels * height * width]
    enough = cells.shape[1] == channels * height * width
    return cells.view(-1, channels, height, width) if enough else values


def _modulated(
    *,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    **_: int,
) -> Geometry:
    stride, padding, dilation = (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    return Geometry(stride, padding, dilation, group, deformable_group)


def ms_deform_attn_forward(
    value: Tensor, shapes: Tensor, starts: Tensor, places: Tensor, weights: Tensor, **_: int
) -> Tensor:
    """Run mmcv's own version in PyTorch, which mmcv itself takes on the CPU only."""
    # mmcv.ops imports this module, so an import at the top would be circular.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    # Sampling has no kernel for low precision on every device.
    single = torch.promote_types(value.dtype, torch.float32)
    wide, places, weights = (tensor.to(single) for tensor in (value, places, weights))
    output: Tensor = multi_scale_deformable_attn_pytorch(wide, shapes, places, weights)
    return output.to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    places: Tensor,
    weights: Tensor,
    grad: Tensor,
    *grads: Tensor,
    **_: int,
) -> None:
    """Fill the gradients of ``value``, ``places`` and ``weights``."""

    def attend(value: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn_forward(value, shapes, starts, places, weights)

    _fill(grads, _pull_back(attend, (value, places, weights), grad))


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    kept_features: Tensor,
    kept_output: Tensor,
    kept_masks: Tensor,
    output: Tensor,
    *,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fill ``output``, and ``kept_features`` with the features for the backward pass."""
    kept_features.copy_(features)
    output.copy_(carafe(features, masks, kernel_size, group_size, scale_factor))


def carafe_backward(
    grad: Tensor,
    features: Tensor,
    masks: Tensor,
    *scratch_and_grads: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fill the last two tensors, the gradients of ``features`` and ``masks``."""

    def upsample(features: Tensor, masks: Tensor) -> Tensor:
        return carafe(features, masks, kernel_size, group_size, scale_factor)

    _fill(scratch_and_grads[-2:], _pull_back(upsample, (features, masks), grad))


def psamask_forward(
    relative: Tensor, output: Tensor, *, psa_type: int, h_mask: int, w_mask: int, **_: int
) -> None:
    """Fill ``output``; type 1 distributes, type 0 collects."""
    output.copy_(psa_mask(relative, (h_mask, w_mask), psa_type == 1))


def psamask_backward(
    grad: Tensor, grad_relative: Tensor, *, psa_type: int, h_mask: int, w_mask: int, **_: int
) -> None:
    """Fill ``grad_relative``; the operator is linear, so any point serves for the derivative."""

    def place(relative: Tensor) -> Tensor:
        return psa_mask(relative, (h_mask, w_mask), psa_type == 1)

    _fill((grad_relative,), _pull_back(place, (grad_relative,), grad))


def _pull_back(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = torch.func.vjp(function, *inputs)[1](grad)
    return grads


def _fill(targets: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)


def masked_im2col_forward(
    input: Tensor,
    y: Tensor,
    x: Tensor,
    columns: Tensor,
    *,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Fill ``columns``."""
    columns.copy_(columns_at(input, y, x, (kernel_h, kernel_w), (pad_h, pad_w)))


def masked_col2im_forward(columns: Tensor, y: Tensor, x: Tensor, output: Tensor, **_: int) -> None:
    """Write ``columns`` (C, M) to the places ``y``, ``x`` of ``output`` (1, C, H, W)."""
    output[0, :, y, x] = columns


def bbox_overlaps(
    boxes1: Tensor, boxes2: Tensor, output: Tensor, *, mode: int, aligned: bool, offset: int
) -> None:
    """Fill ``output`` by mmcv's own version in PyTorch.

    Mode 0 divides by the union, mode 1 by the area of the first box.
    """
    from mmcv.ops.bbox import _bbox_overlaps_cpu

    output.copy_(_bbox_overlaps_cpu(boxes1, boxes2, ("iou", "iof")[mode], aligned, offset))
