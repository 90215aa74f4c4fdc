"""Transforms that move an image and all labels of dense prediction, and keep the labels true."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
from mmcv.transforms import BaseTransform, RandomFlip
from mmcv.transforms.utils import cache_randomness
from mmseg.registry import TRANSFORMS

from mtl_plugins.mm.structures import FIELDS, IGNORED, DenseField
from mtl_plugins.mm.transforms.dense_files import unit

Results = dict[str, Any]
Depth = Literal["metric", "inverse", "as_published"]
Move = Callable[[np.ndarray, int, float], np.ndarray]
"""Mapping of an array, a way of OpenCV to interpolate, and the value of the border to an array."""

INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
NEAREST = cv2.INTER_NEAREST


@TRANSFORMS.register_module()
class MTRandomFlip(RandomFlip):
    """Flip an image and all labels; the mirrored camera sees normals with a negated component.

    Args:
        prob: Probability of a flip, or one for each direction.
        direction: ``'horizontal'``, ``'vertical'``, ``'diagonal'`` or a list of such.
        swap_seg_labels: Pairs of classes to swap in a horizontal or vertical flip, by field, such
            as ``dict(human_parts=[(1, 2)])`` for left and right; only of fields with classes.
    """

    def __init__(
        self,
        prob: float | list[float] | None = None,
        direction: str | list[str] = "horizontal",
        swap_seg_labels: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    ) -> None:
        super().__init__(prob, direction)
        classes = [name for name, field in FIELDS.items() if field.kind == "classes"]
        if swap_seg_labels is not None and (
            not isinstance(swap_seg_labels, Mapping) or not set(swap_seg_labels) <= set(classes)
        ):
            raise ValueError(
                f"swap_seg_labels: {swap_seg_labels!r} does not give pairs of classes by field, of "
                f"{', '.join(classes)}; such as dict(human_parts=[(1, 2)])"
            )
        self.swap_seg_labels = swap_seg_labels or {}

    def _flip(self, results: Results) -> None:
        """Flip as ``flip_direction`` says, see :class:`MTRandomFlip`."""
        direction = results["flip_direction"]
        axes = {"horizontal": (1,), "vertical": (0,), "diagonal": (0, 1)}[direction]

        def mirrored(label: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(np.flip(label, axes))

        results["img"] = mirrored(results["img"])
        for name, field in _present(results):
            label = mirrored(results[field.result])
            if field.kind == "normals":
                for axis in axes:
                    component = label[..., 1 - axis]
                    component[component != 0] *= -1
            swapped = label.copy()
            for one, other in self.swap_seg_labels.get(name, ()) if len(axes) == 1 else ():
                swapped[label == one], swapped[label == other] = other, one
            results[field.result] = swapped


@TRANSFORMS.register_module()
class MTRandomScaleCrop(BaseTransform):
    """Zoom into an image by a random factor, and keep its size.

    A part of ``int(H / s) x int(W / s)`` pixels is enlarged, as MTAN and the survey do. A zoom by s
    multiplies disparity by s. Metric depth is divided by s, which is the depth at which a camera
    without zoom would see things as large; normals stay.

    The image is interpolated, normals too, and scaled to unit length again; all else is nearest.

    Args:
        scales: Factors, at least 1, from which one is drawn; or, as ``dict(low=1, high=1.5)``, a
            range.
        crop: ``'random'`` (MTAN) or ``'centre'`` (the survey).
        depth: ``'metric'`` to divide depth, ``'inverse'`` to multiply it, ``'as_published'`` to
            divide inverse depth too, as public code for Cityscapes does. None for the kind that the
            data set has.
        interpolation: ``'bilinear'`` or ``'bicubic'``, for the image.
    """

    def __init__(
        self,
        scales: Sequence[float] | Mapping[str, float] = (1.0, 1.2, 1.5),
        crop: Literal["random", "centre"] = "random",
        depth: Depth | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        self.scales = _scales(scales)
        if min(self.scales[0] if isinstance(self.scales, tuple) else self.scales) < 1:
            raise ValueError(f"scales: {scales!r} has a factor below 1; MTRotate takes such")
        if crop not in ("random", "centre"):
            raise ValueError(f"crop: {crop!r} is not 'random' or 'centre'")
        self.crop, self.depth = crop, _depth(depth)
        self.interpolation = _interpolation(interpolation)
