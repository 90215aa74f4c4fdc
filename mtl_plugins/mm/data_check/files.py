"""Look for the folders and files that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_plugins.mm.data_check.dense import dense_kind, layout
from mtl_plugins.mm.data_check.sets import local_datasets

ROOTS = (
    *("COCO_ROOT", "CITYSCAPES_ROOT", "BDD100K_ROOT", "BDD100K_DERIVED", "METAGRASPNET_ROOT"),
    *("METAGRASPNET_DERIVED", "NYUV2_ROOT", "CITYSCAPES_MTAN_ROOT", "NYUD_ROOT", "PASCAL_ROOT"),
)
"""Environment variables that our configs read."""


def missing_data(cfg: Mapping[str, Any], pseudo: bool = True) -> str | None:
    """Look for data that is not there, before anything is built.

    Args:
        cfg: Whole config.
        pseudo: True if pseudo labels have to be there.

    Returns:
        The first problem: config key, what was found, what would be valid; None if there is none.
    """
    for key, dataset in local_datasets(cfg):
        if (kind := dense_kind(dataset)) is not None:
            if problem := layout(key, dataset, kind):
                return problem
            continue
        root = Path(dataset.get("data_root") or ".")
        if not root.is_dir():
            return (
                f"{key}.data_root: there is no folder {str(root)!r}. Point it, or the environment "
                f"variable that the config reads it from ({', '.join(ROOTS)}), to the data set"
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
