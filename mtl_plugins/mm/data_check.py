"""Finds what is wrong with the data that a config names, in the words of the config."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# What COCO's format asks of every record, as far as the loaders read it.
COCO_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area"),
    "categories": ("id", "name"),
}


def missing_data(cfg: Mapping[str, Any], pseudo: bool = True) -> str | None:
    """Looks for data that is not there, before anything is built.

    Args:
        cfg: A whole config.
        pseudo: Whether pseudo labels have to be there.

    Returns:
        The first problem: config key, what was found, what would be valid; None if there is none.
    """
    for key, dataset in _local_datasets(cfg):
        root = Path(dataset.get("data_root") or ".")
        if not root.is_dir():
            return (
                f"{key}.data_root: there is no folder {str(root)!r}. Point it, or the environment "
                "variable that the config reads it from (COCO_ROOT, CITYSCAPES_ROOT, BDD100K_ROOT, "
                "METAGRASPNET_ROOT), to the data set"
            )
        prefix = dataset.get("data_prefix") or {}
        parts = {name: dataset.get(name) for name in ("ann_file", "pseudo_ann_file")}
        parts |= {f"data_prefix.{name}": part for name, part in prefix.items()}
        for name, part in parts.items():
            if "pseudo" in name and not pseudo:
                continue
            if isinstance(part, str) and part and not (root / part).exists():
                found = ", ".join(sorted(p.name for p in (root / part).parent.glob("*"))[:8])
                tool = "; tools/pseudo_label.py writes it" if "pseudo" in name else ""
                return (
                    f"{key}.{name}: there is no {str(root / part)!r}; "
                    f"{str((root / part).parent)!r} holds {found or 'nothing'}{tool}"
                )
    return None


def broken_annotations(cfg: Mapping[str, Any]) -> str | None:
    """Reads the COCO annotation files for keys that are missing; slow, so only after a failure.

    Args:
        cfg: A whole config.

    Returns:
        The first problem, as for :func:`missing_data`.
    """
    for key, dataset in _local_datasets(cfg):
        ann_file = dataset.get("ann_file")
        if dataset.get("type") != "CocoDataset" or not isinstance(ann_file, str):
            continue
        path = Path(dataset.get("data_root") or ".") / ann_file
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            return f"{key}.ann_file: {str(path)!r} is not JSON: {error}"
        loads = [step for step in dataset.get("pipeline", []) if step["type"] == "LoadAnnotations"]
        masks = any(step.get("with_mask") for step in loads)
        for part, keys in COCO_KEYS.items():
            if part not in content:
                return (
                    f"{key}.ann_file: {str(path)!r} has no {part!r}; COCO's format has "
                    f"{list(COCO_KEYS)}, the file has {list(content)}"
                )
            wanted = (*keys, "segmentation") if masks and part == "annotations" else keys
            for record in content[part]:
                missing = [name for name in wanted if name not in record]
                if missing:
                    return (
                        f"{key}.ann_file: in {str(path)!r}, {part} has a record without "
                        f"{missing}: it has {list(record)}"
                    )
    return None


def _local_datasets(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every data set that training reads from a local disk, with its config key."""
    for loader in ("train_dataloader", "val_dataloader"):
        if cfg.get(loader):
            for key, dataset in open_datasets(f"{loader}.dataset", cfg[loader]["dataset"]):
                if not dataset.get("backend_args") and "data_root" in dataset:
                    yield key, dataset


def open_datasets(key: str, dataset: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every data set that a data set's config names, wrappers opened, with its config key.

    Args:
        key: Of the config.
        dataset: The config.
    """
    if "dataset" in dataset:
        yield from open_datasets(f"{key}.dataset", dataset["dataset"])
    elif "datasets" in dataset:
        for i, inner in enumerate(dataset["datasets"]):
            yield from open_datasets(f"{key}.datasets[{i}]", inner)
    else:
        yield key, dataset
