"""Find the data sets that a config names, inside of their wrappers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

Json = dict[str, Any]
Problem = tuple[str | None, str] | None
"""Problem of a data set: key below that of the set, None for the file's own key; and the words."""

OPENED = 8
"""Number of images of a set that are opened."""


def some(count: int) -> range:
    """Choose the images of a set that are opened: evenly spread, from the first on."""
    return range(0, count, max(1, math.ceil(count / OPENED)))


def local_datasets(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every data set that training reads from a local disk, with its config key."""
    for loader in ("train_dataloader", "val_dataloader"):
        options = cfg.get(loader)
        if isinstance(options, Mapping) and "dataset" in options:
            for key, dataset in open_datasets(f"{loader}.dataset", options["dataset"]):
                paths = (dataset.get("data_root"), dataset.get("ann_file"))
                remote = any("://" in str(path) for path in paths)
                if not remote and not dataset.get("backend_args") and any(map(bool, paths)):
                    yield key, dataset


def open_datasets(key: str, dataset: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every data set that a data set's config names, wrappers opened, with its config key.

    Args:
        key: Config key of the data set.
        dataset: Config of the data set; a built data set yields nothing.
    """
    if not isinstance(dataset, Mapping):
        return
    if "dataset" in dataset:
        yield from open_datasets(f"{key}.dataset", dataset["dataset"])
    elif "datasets" in dataset:
        for i, inner in enumerate(dataset["datasets"]):
            yield from open_datasets(f"{key}.datasets[{i}]", inner)
    else:
        yield key, dataset


def no_comma(key: str, classes: str) -> str:
    """Return the problem of classes that are a word, for want of a comma or of a file."""
    return (
        f"{key}.metainfo.classes: {classes!r} is a word, not a list of classes (nor a file that "
        f"is there); one class is classes=({classes!r},)"
    )
