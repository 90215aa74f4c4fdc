"""Stand-in for ``detectron2._C``, of which Mask R-CNN and similar models need nothing.

``tools/install_detectron2.py`` installs a copy of this file under that name. In such
models, RoIAlign and non-maximum suppression are torchvision's.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

_MISSING = (
    "Detectron2's operator {!r} needs its compiled extension, which is not installed. Install "
    "Detectron2 from its repository, beside torch and a compiler: pip install "
    "--no-build-isolation git+https://github.com/facebookresearch/detectron2"
)


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(_MISSING.format(name))


def get_compiler_version() -> str:
    """Return text for environment reports."""
    return "not compiled (stand-in of mtl_plugins)"


def get_cuda_version() -> str:
    """Return text for environment reports."""
    return "not available"


def has_cuda() -> bool:
    """Return whether the extension was compiled with CUDA, for environment reports."""
    return False


# Detectron2 looks this operator up among torch's.
@torch.library.custom_op("detectron2::nms_rotated", mutates_args=())
def _nms_rotated(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    raise NotImplementedError(_MISSING.format("nms_rotated"))
