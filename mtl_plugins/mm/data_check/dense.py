"""Check the data sets of dense prediction: their options, folders and a few of their labels."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine.registry import DefaultScope

from mtl_plugins.mm.data_check.sets import local_datasets, some

if TYPE_CHECKING:
    from mtl_plugins.mm.datasets import DenseDataset

BYTES_ONLY = {"PhotoMetricDistortion", "CLAHE", "AdjustGamma"}
"""Transforms of MMSegmentation that turn any image into uint8 without scaling it."""


def broken_labels(cfg: Mapping[str, Any]) -> str | None:
    """Load a few images of every data set of dense prediction, and their labels.

    Args:
        cfg: Whole config, of which :func:`missing_data` finds nothing missing.

    Returns:
        The first problem, as for :func:`missing_data`, with file and field.
    """
    for key, options in local_datasets(cfg):
        if (kind := dense_kind(options)) is None:
            continue
        from mtl_plugins.mm.transforms import LoadMultiTask

        dataset = lazily(options, kind)
        dataset.full_init()
        steps = dataset.pipeline.transforms
        if not any(isinstance(step, LoadMultiTask) for step in steps):
            continue
        jitter = [name for step in steps if (name := type(step).__name__) in BYTES_ONLY]
        for i in some(len(dataset)):
            try:
                loaded = LoadMultiTask().transform(dataset.get_data_info(i))
            except ValueError as error:
                return f"{key}: {error}"
            if jitter and loaded["img"].dtype != np.uint8:
                return (
                    f"{key}.pipeline: {jitter[0]} takes colours from 0 to 255 of uint8, the image "
                    f"{loaded['img_path']} has {loaded['img'].dtype}; leave {jitter[0]} out"
                )
    return None


def dense_kind(options: Mapping[str, Any]) -> type[DenseDataset] | None:
    """Return the class of a data set of dense prediction; None for other data sets."""
    if "mtl_plugins.mm.datasets.dense" not in sys.modules:  # importing it takes a second
        return None
    from mmseg.registry import DATASETS

    from mtl_plugins.mm.datasets import DenseDataset

    kind = options.get("type")
    cls: Any = DATASETS.get(kind) if isinstance(kind, str) else kind
    return cls if isinstance(cls, type) and issubclass(cls, DenseDataset) else None


def layout(key: str, options: Mapping[str, Any], kind: type[DenseDataset]) -> str | None:
    """Return a problem of the options or the folder of a data set of dense prediction."""
    try:
        problem = lazily(options, kind).layout_problem()
    except (TypeError, ValueError) as error:
        return f"{key}: {error}"
    return problem and f"{key}.data_root: {problem}"


def lazily(options: Mapping[str, Any], kind: type[DenseDataset]) -> DenseDataset:
    """Build a data set that has looked for no file yet."""
    given = {name: value for name, value in options.items() if name != "type"}
    with DefaultScope.overwrite_default_scope("mmseg"):
        return kind(**{**given, "lazy_init": True})
