"""Transforms that load and pack the labels of an image, from one source or two."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import to_tensor
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs
from mmdet.registry import TRANSFORMS
from mmengine.structures import PixelData

from mtl_plugins.mm.transforms.dense_files import stretches

_PSEUDO = 10_000
"""Offset of the classes of a teacher's boxes between loading and packing.

All boxes are one list there, so that every transform treats labels and teacher alike.
"""


@TRANSFORMS.register_module()
class LoadPartialAnnotations(LoadAnnotations):
    """Load the boxes and semantic maps that an image of a ``PartialDataset`` has.

    The boxes of labels and teacher are joined in one list, the maps of both in one map, so that any
    transform of MMDetection that knows ``gt_bboxes`` and ``gt_seg_map`` keeps all labels aligned.
    :class:`PackPartialInputs` separates the sources again.

    Args:
        **kwargs: Arguments of ``LoadAnnotations``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(with_bbox=True, with_label=True, with_seg=True, **kwargs)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add the labels and the names of the sources that have some.

        The keys are ``gt_bboxes``, ``gt_bboxes_labels`` and ``gt_ignore_flags`` if there are boxes,
        ``gt_seg_map`` (``[H, W]``) if there is a map, ``box_sources`` and ``seg_sources``.

        Raises:
            ValueError: A map has another size than its image, or less than 8 bits a pixel.
        """
        labels, pseudo = results.pop("instances", None), results.pop("pseudo_instances", None)
        results["box_sources"] = _present(labels, pseudo)
        if results["box_sources"]:
            raised = [box | {"bbox_label": box["bbox_label"] + _PSEUDO} for box in pseudo or ()]
            results["instances"] = [*(labels or ()), *raised]
            self._load_bboxes(results)
            self._load_labels(results)
        paths = results.get("seg_map_path"), results.get("pseudo_seg_map_path")
        results["seg_sources"] = _present(*paths)
        maps = [self._map(path, results) for path in paths if path is not None]
        if maps:
            results["gt_seg_map"] = maps[0] if len(maps) == 1 else _join(*maps)
        return results

    def _map(self, path: str, results: dict[str, Any]) -> np.ndarray:
        if stretches(path):
            raise ValueError(
                f"the semantic map {path!r} has less than 8 bits a pixel, and decoders stretch its "
                "classes to 255: save it as a PNG of 8 bits"
            )
        found: dict[str, Any] = {"seg_map_path": path}
        self._load_seg_map(found)
        if found["gt_seg_map"].shape != tuple(results["ori_shape"]):
            raise ValueError(
                f"the semantic map {path!r} has the shape {found['gt_seg_map'].shape}, its image "
                f"{results['img_path']!r} {tuple(results['ori_shape'])}"
            )
        return found["gt_seg_map"]


@TRANSFORMS.register_module()
class PackPartialInputs(PackDetInputs):
    """Pack the labels that :class:`LoadPartialAnnotations` loaded.

    The data sample has ``gt_instances``, ``pseudo_instances``, ``gt_sem_seg`` and
    ``pseudo_sem_seg``, each only if the image has such labels. An image labelled as without objects
    has ``gt_instances`` of length 0; an image without labels for boxes has no ``gt_instances``.

    Args:
        meta_keys: Keys of ``metainfo``, as for ``PackDetInputs``.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return the image as ``inputs`` and the labels as ``data_samples``."""
        box_sources, seg_sources = results["box_sources"], results["seg_sources"]
        maps = results.pop("gt_seg_map", None)
        packed = super().transform(results)
        sample = packed["data_samples"]
        boxes = sample.gt_instances
        del sample.gt_instances
        if "gt" not in box_sources:
            del sample.ignored_instances
        for source in box_sources:
            mine = (boxes.labels >= _PSEUDO) == (source == "pseudo")
            sample.set_field(boxes[mine], f"{source}_instances")
        if "pseudo" in box_sources:
            pseudo = sample.pseudo_instances
            pseudo.labels = pseudo.labels - _PSEUDO
            # MMDetection's preprocessor turns the boxes of gt_instances alone into tensors.
            pseudo.bboxes = getattr(pseudo.bboxes, "tensor", pseudo.bboxes)
        if maps is not None:
            each = [maps] if len(seg_sources) == 1 else _take_apart(maps)
            for source, labels in zip(seg_sources, each, strict=True):
                pixels = PixelData(sem_seg=to_tensor(labels[None].copy()))
                sample.set_field(pixels, f"{source}_sem_seg")
        return packed


def _join(labels: np.ndarray, pseudo: np.ndarray) -> np.ndarray:
    """Join two maps in one; 255, with which transforms fill, means 255 in both."""
    return (255 - labels.astype(np.uint16)) * 256 + pseudo


def _take_apart(both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two maps that :func:`_join` was given."""
    return (255 - both // 256).astype(np.uint8), (both % 256).astype(np.uint8)


def _present(labels: Any, pseudo: Any) -> tuple[str, ...]:
    """Return the names of the sources that are not None."""
    return tuple(n for n, v in (("gt", labels), ("pseudo", pseudo)) if v is not None)
