"""Transforms that load and pack depth, and objects with an amodal and a visible mask."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs
from mmdet.registry import TRANSFORMS

_CLASSES = 10_000
"""Bound on the number of classes of a data set.

Between loading and packing, a label is ``2 * (number of the object * _CLASSES + class) + visible``,
so that the labels tell which masks the transforms in between have kept.
"""


@TRANSFORMS.register_module()
class LoadDepth(BaseTransform):
    """Append depth to the image as a fourth channel, so that later transforms move both.

    The channel maps ``depth_range`` linearly to 0 to 255, clipped at both ends, and is 0 where
    nothing was measured, as in UOAIS (``adet/data/dataset_mapper.py``), which clips zeros to the
    near end.

    A file is an npz, or an npy with the depth alone. If no pixel of an image lies within
    ``depth_range``, a warning is given, since the channel then holds no depth: the unit may be
    wrong.

    Colour jitter belongs before this transform. MMDetection's ``Shear*`` and ``Translate*`` take
    images of three channels only.

    Args:
        depth_range: Nearest and farthest depth of the channel, in the unit of the files:
            centimetres in MetaGraspNet.
        key: Name of the array in the npz.

    Examples:
        >>> # In a config
        >>> train_pipeline = [
        ...     dict(type='LoadImageFromFile'), dict(type='PhotoMetricDistortion'),
        ...     dict(type='LoadDepth', depth_range=(50, 250)), dict(type='LoadAmodalAnnotations'),
        ...     dict(type='RandomFlip', prob=0.5), dict(type='PackAmodalInputs')]
    """

    def __init__(self, depth_range: Sequence[float], key: str = "depth") -> None:
        if len(depth_range) != 2 or not depth_range[0] < depth_range[1]:
            raise ValueError(
                f"depth_range: {depth_range!r} is not the nearest and a farther depth, "
                "such as (50, 250)"
            )
        self.nearest, self.farthest = map(float, depth_range)
        self.key = key

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Make ``img`` float32 ``[H, W, 4]``: blue, green, red, depth.

        Raises:
            ValueError: There is no such array in the file, or it has another size than the image.
        """
        path, image = results["depth_path"], results["img"]
        depth = self.measured(path)
        if depth.shape != image.shape[:2]:
            raise ValueError(
                f"{self.key!r} in {path!r} has the shape {depth.shape}, the image "
                f"{results['img_path']!r} {image.shape[:2]}"
            )
        if not self.tells_apart(depth):
            warnings.warn(self.out_of_range(path, depth), stacklevel=2)
        depth = np.nan_to_num(depth.astype(np.float32), nan=self.nearest)
        depth = depth.clip(self.nearest, self.farthest) - self.nearest
        depth *= 255 / (self.farthest - self.nearest)
        results["img"] = np.dstack([image, depth]).astype(np.float32)
        return results

    def measured(self, path: str) -> np.ndarray:
        """Return the depth in a file, ``[H, W]``, NaN or 0 where nothing was measured.

        Raises:
            ValueError: There is no such array in the file, or it cannot be read.
        """
        try:
            file = np.load(path)
            found = {self.key: file} if isinstance(file, np.ndarray) else file
            if self.key in found:
                return found[self.key]
        except (EOFError, ValueError, zipfile.BadZipFile, zlib.error, UnpicklingError) as error:
            raise ValueError(f"{path!r} cannot be read: {error}") from error
        raise ValueError(f"key: {path!r} has no {self.key!r}; found: {list(found)}")

    def tells_apart(self, depth: np.ndarray) -> bool:
        """Tell whether some pixel lies within the range."""
        return bool(((depth > self.nearest) & (depth < self.farthest)).any())

    def out_of_range(self, path: str, depth: np.ndarray) -> str:
        """Return a warning that no depth lies within the range, with a range that would fit.

        Args:
            path: Path of the depth file.
            depth: Array that :meth:`measured` found in the file, ``[H, W]``.
        """
        found = depth[np.isfinite(depth) & (depth != 0)]
        if not found.size:
            return f"LoadDepth: {path!r} holds no measured depth: all of it is NaN, infinite or 0"
        for factor in (10, 100, 1000, 0.1, 0.01, 0.001):
            if self.tells_apart(found / factor):
                ends = tuple(float(f"{end * factor:g}") for end in (self.nearest, self.farthest))
                hint = f"in the unit of the file it may be depth_range={ends}"
                break
        else:
            hint = "set it to where the camera sees objects, in the unit of the file"
        return (
            f"LoadDepth.depth_range: no depth in {path!r} lies between {self.nearest:g} and "
            f"{self.farthest:g}; it goes from {found.min():g} to {found.max():g}, and the image "
            f"would be of two grey values at most; {hint}"
        )


@TRANSFORMS.register_module()
class LoadAmodalAnnotations(LoadAnnotations):
    """Load the objects of an image of a ``MetaGraspNetDataset``.

    Each object has two entries in ``gt_masks``, the amodal and the visible mask, with the same box,
    so that any transform of MMDetection that knows ``gt_masks`` and mixes no images keeps both
    masks aligned. :class:`PackAmodalInputs` joins the entries again.

    Args:
        **kwargs: Arguments of ``LoadAnnotations``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(with_bbox=True, with_label=True, with_mask=True, **kwargs)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``gt_bboxes``, ``gt_bboxes_labels``, ``gt_ignore_flags`` and ``gt_masks``.

        Raises:
            ValueError: A mask has another size than the image.
        """
        instances = results["instances"]
        both = []
        for number, instance in enumerate(instances):
            label = 2 * (number * _CLASSES + instance["bbox_label"])
            visible = {"mask": instance["visible_mask"], "bbox_label": label + 1}
            both += [{**instance, "bbox_label": label}, {**instance, **visible}]
        size = list(results["ori_shape"])
        for instance in both:
            if isinstance(instance["mask"], dict) and list(instance["mask"]["size"]) != size:
                raise ValueError(
                    f"a mask has the size {instance['mask']['size']}, its image "
                    f"{results['img_path']!r} {size}"
                )
        loaded = super().transform({**results, "instances": both})
        return {**loaded, "instances": instances}


@TRANSFORMS.register_module()
class PackAmodalInputs(PackDetInputs):
    """Pack the objects that :class:`LoadAmodalAnnotations` loaded.

    The ``gt_instances`` have ``bboxes`` and ``masks``, which are amodal, ``visible_masks``,
    ``labels`` and ``occluded`` (int64, 0 or 1). Occlusion is measured on the masks after all
    transforms. An object without a visible pixel after the transforms is left out.

    Args:
        occluded_threshold: Least hidden share (0 to 1) of the amodal mask of an occluded object.
            The default is UOAIS's (``adet/data/detection_utils.py``).
        meta_keys: Keys of ``metainfo``, as for ``PackDetInputs``.
    """

    def __init__(self, occluded_threshold: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.occluded_threshold = occluded_threshold

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return the image as ``inputs``, ``[4, H, W]``, and its objects as ``data_samples``.

        Raises:
            ValueError: A transform has mixed objects of several images.
        """
        if "gt_masks" not in results:
            return super().transform(results)
        objects, is_visible = np.divmod(results["gt_bboxes_labels"], 2)
        masks, areas = results["gt_masks"], results["gt_masks"].areas
        whole = np.flatnonzero(is_visible == 0)
        seen = np.flatnonzero((is_visible == 1) & (areas > 0))
        if len(np.unique(results["gt_bboxes_labels"])) < len(objects):
            raise ValueError(
                "pipeline: two objects have the same number; transforms that mix images, such as "
                "Mosaic, MixUp and CopyPaste, cannot follow LoadAmodalAnnotations"
            )
        # A transform may have dropped one of an object's two masks.
        _, first, second = np.intersect1d(
            objects[whole], objects[seen], assume_unique=True, return_indices=True
        )
        whole, seen = whole[first], seen[second]
        paired = {
            "gt_bboxes": results["gt_bboxes"][whole],
            "gt_bboxes_labels": objects[whole] % _CLASSES,
            "gt_ignore_flags": results["gt_ignore_flags"][whole],
            "gt_masks": masks[whole],
        }
        packed = super().transform({**results, **paired})
        kept = ~paired["gt_ignore_flags"]
        whole, seen = whole[kept], seen[kept]
        hidden = (masks.masks[whole] > masks.masks[seen]).sum((1, 2))
        occluded = hidden / areas[whole] >= self.occluded_threshold
        truth = packed["data_samples"].gt_instances
        truth.visible_masks = masks[seen]
        truth.occluded = torch.from_numpy(occluded.astype(np.int64))
        return packed
