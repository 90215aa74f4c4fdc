"""Transforms that move an image and all labels of dense prediction, and keep the labels true."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
from mmcv.transforms import BaseTransform, RandomFlip
from mmseg.datasets.transforms import RandomCrop
from mmseg.registry import TRANSFORMS

from mtl_plugins.mm.structures import FIELDS, IGNORED, DenseField
from mtl_plugins.mm.transforms.dense_files import unit

Results = dict[str, Any]
Depth = Literal["metric", "inverse", "as_published"]
Move = Callable[[np.ndarray, int, float], np.ndarray]
"""Mapping of an array, a way of OpenCV to interpolate, and the value of the border to an array."""

INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


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


class _Moving(BaseTransform):
    """Transform that maps the pixels of an image and all labels in one way.

    Args:
        depth: Way in which a zoom changes depth, see :class:`MTRandomScaleCrop`.
        interpolation: ``'bilinear'`` or ``'bicubic'``, for the image.
    """

    def __init__(self, depth: Depth | None = None, interpolation: str = "bilinear") -> None:
        if depth not in (None, "metric", "inverse", "as_published"):
            raise ValueError(
                f"depth: {depth!r} is not 'metric', 'inverse', 'as_published' or None for the kind "
                "of the data set"
            )
        if interpolation not in INTERPOLATION:
            raise ValueError(
                f"interpolation: {interpolation!r} is not {' or '.join(INTERPOLATION)}"
            )
        self.depth = depth
        self.interpolation = interpolation

    def _move(self, results: Results, move: Move) -> None:
        """Move the pixels; the image is interpolated, normals too, all else is nearest."""
        image = results["img"]
        moved = move(image, INTERPOLATION[self.interpolation], 0)
        # Bicubic interpolation overshoots; OpenCV clips integers only.
        results["img"] = np.clip(moved, min(image.min(), 0), image.max())
        results["img_shape"] = moved.shape[:2]
        for _, field in _present(results):
            label = results[field.result]
            nearest = move(label, cv2.INTER_NEAREST, field.unknown)
            if field.kind == "normals":
                smooth = move(label, cv2.INTER_LINEAR, field.unknown)
                nearest = unit(smooth, np.any(nearest, axis=2))
            results[field.result] = nearest

    def _zoom(self, results: Results, scale: float) -> None:
        """Change depth as a zoom does.

        Raises:
            ValueError: The kind of depth is unknown, or is not the kind that ``depth`` names.
        """
        key = FIELDS["depth"].result
        if key not in results:
            return
        has = results.get("depth_kind")
        kind = self.depth or has
        if kind is None or (kind != "as_published" and has not in (None, kind)):
            raise ValueError(
                f"pipeline: {type(self).__name__} has depth={self.depth!r}, the data set's depth "
                f"is {has or 'of unknown kind'}; valid are 'metric' and 'inverse', if they "
                "agree, and 'as_published'"
            )
        results[key] = results[key] * np.float32(scale if kind == "inverse" else 1 / scale)


@TRANSFORMS.register_module()
class MTRandomScaleCrop(_Moving):
    """Zoom into an image by a random factor, and keep its size.

    A part of ``int(H / s) x int(W / s)`` pixels is enlarged, as MTAN and the survey do. A zoom by s
    multiplies inverse depth (disparity) by s. Metric depth is divided by s, so that it is the depth
    at which a camera without zoom would see a thing as large. Normals stay.

    Args:
        scales: Factors, at least 1, from which one is drawn.
        scale_range: Lowest and highest factor, to draw evenly from in place of ``scales``.
        crop: ``'random'`` (MTAN) or ``'centre'`` (the survey).
        depth: ``'metric'`` to divide depth, ``'inverse'`` to multiply it, ``'as_published'`` to
            divide even inverse depth, as public code for Cityscapes does. None for the kind that
            the data set has.
        interpolation: ``'bilinear'`` or ``'bicubic'``, for the image.
    """

    def __init__(
        self,
        scales: Sequence[float] = (1.0, 1.2, 1.5),
        scale_range: tuple[float, float] | None = None,
        crop: Literal["random", "centre"] = "random",
        depth: Depth | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__(depth, interpolation)
        if not scales or min(scales if scale_range is None else scale_range) < 1:
            raise ValueError(
                f"scales: {scales!r}, scale_range: {scale_range!r}: factors are at least 1; "
                "MTRotate takes smaller ones"
            )
        if crop not in ("random", "centre"):
            raise ValueError(f"crop: {crop!r} is not 'random' or 'centre'")
        self.scales, self.scale_range, self.crop = tuple(scales), scale_range, crop

    def transform(self, results: Results) -> Results:
        """Zoom, see the class."""
        height, width = results["img"].shape[:2]
        scale = (
            float(np.random.choice(self.scales))
            if self.scale_range is None
            else np.random.uniform(*self.scale_range)
        )
        rows, columns = max(int(height / scale), 1), max(int(width / scale), 1)
        top, left = (height - rows) // 2, (width - columns) // 2
        if self.crop == "random":
            top = np.random.randint(height - rows + 1)
            left = np.random.randint(width - columns + 1)

        def enlarged(array: np.ndarray, interpolation: int, border: float) -> np.ndarray:
            part = array[top : top + rows, left : left + columns]
            return _resized(part, (width, height), interpolation)

        self._move(results, enlarged)
        self._zoom(results, scale)
        return results


@TRANSFORMS.register_module()
class MTRotate(_Moving):
    """Rotate and zoom an image about its centre by random amounts, and keep its size.

    The x and y components of normals (x to the right, y down) turn with the image. Pixels from
    beyond the border are black, and unknown in all labels.

    Args:
        degrees: Lowest and highest angle, counter-clockwise, or the highest of both directions.
        scales: Lowest and highest factor of the zoom.
        depth: Way in which the zoom changes depth, see :class:`MTRandomScaleCrop`.
        interpolation: ``'bilinear'`` or ``'bicubic'``, for the image.
    """

    def __init__(
        self,
        degrees: float | tuple[float, float],
        scales: tuple[float, float] = (1.0, 1.0),
        depth: Depth | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__(depth, interpolation)
        self.degrees = (-degrees, degrees) if isinstance(degrees, (int, float)) else degrees
        self.scales = scales
        if len(self.degrees) != 2 or len(scales) != 2 or min(scales) <= 0:
            raise ValueError(
                f"degrees: {degrees!r}, scales: {scales!r}: each is a lowest and a highest number, "
                "scales above 0"
            )

    def transform(self, results: Results) -> Results:
        """Rotate and zoom, see the class."""
        height, width = results["img"].shape[:2]
        angle, scale = np.random.uniform(*self.degrees), np.random.uniform(*self.scales)
        centre = ((width - 1) / 2, (height - 1) / 2)
        matrix = cv2.getRotationMatrix2D(centre, angle, scale)

        def rotated(array: np.ndarray, interpolation: int, border: float) -> np.ndarray:
            return cv2.warpAffine(
                array, matrix, (width, height), flags=interpolation, borderValue=(border,) * 4
            )

        self._move(results, rotated)
        if (key := FIELDS["normals"].result) in results:
            sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
            turn = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]], np.float32)
            results[key] = results[key] @ turn.T
        self._zoom(results, scale)
        return results


@TRANSFORMS.register_module()
class MTResize(_Moving):
    """Resize an image, and the labels that are loaded, whatever the ratio of the sides.

    Depth stays: a thing is no nearer in an image of fewer pixels.

    Args:
        scale: Width and height.
        interpolation: ``'bilinear'`` or ``'bicubic'``, for the image.
    """

    def __init__(self, scale: tuple[int, int], interpolation: str = "bilinear") -> None:
        super().__init__(interpolation=interpolation)
        self.scale = tuple(scale)

    def transform(self, results: Results) -> Results:
        """Resize, see the class; ``scale_factor`` is the new width and height by the old."""
        height, width = results["img"].shape[:2]
        self._move(results, lambda array, how, border: _resized(array, self.scale, how))
        results["scale_factor"] = self.scale[0] / width, self.scale[1] / height
        results["scale"], results["keep_ratio"] = self.scale, False
        return results


@TRANSFORMS.register_module()
class MTRandomCrop(RandomCrop):
    """Crop an image and all labels at random, as MMSegmentation's ``RandomCrop`` draws the place.

    Args:
        crop_size: Height and width, or one number for both.
        cat_max_ratio: Largest part of the pixels that one class of ``gt_seg_map`` should fill.
    """

    def __init__(self, crop_size: int | tuple[int, int], cat_max_ratio: float = 1.0) -> None:
        size = crop_size if isinstance(crop_size, int) else tuple(crop_size)
        super().__init__(size, cat_max_ratio, ignore_index=IGNORED)

    def transform(self, results: Results) -> Results:
        """Crop, see the class; an image smaller than ``crop_size`` stays smaller."""
        image = results["img"]
        place = self.crop_bbox({"gt_seg_map": np.zeros(image.shape[:2], np.uint8), **results})
        for key in ("img", *(field.result for _, field in _present(results))):
            results[key] = np.ascontiguousarray(self.crop(results[key], place))
        results["img_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class MTPad(BaseTransform):
    """Pad an image and all labels at the right and the bottom; padded pixels are unknown.

    A prediction loses the padding again, before it is resized to the size of the file.

    Args:
        size: Least height and width.
        pad_val: Value of the image's padded pixels.
    """

    def __init__(self, size: tuple[int, int], pad_val: float = 0) -> None:
        self.size = tuple(size)
        self.pad_val = pad_val

    def transform(self, results: Results) -> Results:
        """Pad, see the class."""
        height, width = results["img"].shape[:2]
        more = [(0, max(self.size[0] - height, 0)), (0, max(self.size[1] - width, 0))]
        padded = {"img": self.pad_val}
        padded |= {field.result: field.unknown for _, field in _present(results)}
        for key, value in padded.items():
            array = results[key]
            around = more + [(0, 0)] * (array.ndim - 2)
            results[key] = np.pad(array, around, constant_values=array.dtype.type(value))
        results["img_shape"] = results["pad_shape"] = results["img"].shape[:2]
        _, right, _, bottom = results.get("padding_size", [0] * 4)
        results["padding_size"] = [0, right + more[1][1], 0, bottom + more[0][1]]
        return results


def _present(results: Results) -> list[tuple[str, DenseField]]:
    """Return the fields of the labels that an image has."""
    return [(name, field) for name, field in FIELDS.items() if field.result in results]


def _resized(array: np.ndarray, size: Sequence[int], interpolation: int) -> np.ndarray:
    # By INTER_NEAREST, labels would lie up to half a pixel beside the image.
    if interpolation == cv2.INTER_NEAREST:
        interpolation = cv2.INTER_NEAREST_EXACT
    return cv2.resize(np.ascontiguousarray(array), tuple(size), interpolation=interpolation)
