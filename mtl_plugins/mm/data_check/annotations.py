"""Read annotation files in COCO's format, as far as the data sets that name them do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_plugins.mm.data_check.coco import Use, file_problem
from mtl_plugins.mm.data_check.images import Opening
from mtl_plugins.mm.data_check.sets import Problem, local_datasets, no_comma

_FOUND: dict[str, Problem] = {}
"""Verdicts by all that they depend on, such as the file's time and size."""


def broken_annotations(cfg: Mapping[str, Any], pseudo: bool = True) -> str | None:
    """Read the annotation files in COCO's format, and open a few of their images.

    Args:
        cfg: Whole config, of which :func:`missing_data` finds nothing missing.
        pseudo: True to read pseudo labels too.

    Returns:
        The first problem, as for :func:`missing_data`, with file and id.
    """
    for key, dataset in local_datasets(cfg):
        if (use := _use(key, dataset)) is None:
            continue
        if "img" not in (dataset.get("data_prefix") or {}):
            return (
                f"{key}.data_prefix: has no 'img', the folder of the images below data_root; "
                "dict(img='') if file_name in ann_file begins there"
            )
        if isinstance(use.classes, str):
            return no_comma(key, use.classes)
        files = {"ann_file": use.objects}
        if pseudo and dataset.get("pseudo_ann_file"):
            files["pseudo_ann_file"] = True
        for name, objects in files.items():
            path = Path(dataset.get("data_root") or ".", dataset[name])
            opened = use.opened if name == "ann_file" else None
            stat = path.stat()
            read = repr((path, stat.st_mtime_ns, stat.st_size, use, objects, opened))
            if read not in _FOUND:  # a large file takes seconds
                _FOUND[read] = file_problem(path, use, objects, opened)
            if found := _FOUND[read]:
                where, what = found
                return f"{key}.{where or name}: {what}"
    return None


def _use(key: str, dataset: Mapping[str, Any]) -> Use | None:
    """Tell how ``CocoDataset`` or a subclass reads a file; None for other data sets."""
    from mmdet.datasets import CocoDataset
    from mmdet.registry import DATASETS

    kind = dataset.get("type")
    cls: Any = DATASETS.get(kind) if isinstance(kind, str) else kind
    is_class = isinstance(cls, type)
    if not isinstance(dataset.get("ann_file"), str) or not is_class:
        return None
    if not issubclass(cls, CocoDataset) or any(
        not method.__module__.startswith(("mmdet.datasets.coco", "mtl_plugins."))
        or method.__module__ in ("mmdet.datasets.coco_panoptic", "mmdet.datasets.coco_caption")
        for method in (cls.load_data_list, cls.parse_data_info)
    ):
        return None
    metainfo = cls._load_metainfo(dataset.get("metainfo"))
    classes = metainfo.get("classes", ())
    steps = {
        str(step["type"]).rsplit(".", 1)[-1]: step
        for step in dataset.get("pipeline") or ()
        if isinstance(step, Mapping) and "type" in step
    }
    opened = None
    root = Path(dataset.get("data_root") or "")
    prefix = dataset.get("data_prefix") or {}
    if "LoadImageFromFile" in steps and "img" in prefix:
        opened = Opening(
            folder=str(root / prefix["img"]),
            load=steps["LoadImageFromFile"],
            depth=steps.get("LoadDepth"),
            depth_folder=str(root / prefix.get("depth", prefix["img"])),
        )
    return Use(
        classes=classes if isinstance(classes, str) else tuple(classes),
        masks=bool(steps.get("LoadAnnotations", {}).get("with_mask"))
        or "LoadAmodalAnnotations" in steps,
        objects=dataset.get("boxes", True),
        trains=key.startswith("train") and not dataset.get("test_mode", False),
        opened=opened,
    )
