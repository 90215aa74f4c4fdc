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

from torch import Tensor

from mtl_plugins.ops import focal_loss
from mtl_plugins.ops.nms import nms, soft_nms
from mtl_plugins.ops.roi_align import Sampling, adjoint, pool

__all__ = ["nms"]  # already has mmcv's signature

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
    """Text for environment reports."""
    return "not compiled (torchvision stand-in of mtl_plugins)"


def get_compiling_cuda_version() -> str:
    """Text for environment reports, worded like a compiled mmcv without CUDA."""
    return "not available"


def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, **options: Any) -> Tensor:
    """Fills the head of ``dets`` with the kept rows and returns their indices."""
    kept, keep = soft_nms(boxes, scores, **options)
    dets[: len(keep)] = kept
    return keep


def _filling_last(compute: Callable[..., Tensor]) -> Callable[..., None]:
    """Gives ``compute`` mmcv's form: three inputs, any scratch space, the output to fill."""

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
    """Fills ``output``; the ``argmax`` tensors serve max pooling and stay untouched."""
    output.copy_(pool(input, rois, _sampling(**options)))


def roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    **options: Any,
) -> None:
    """Fills ``grad_input``."""
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
