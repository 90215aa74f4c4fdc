"""Find faults in the data that a config names, and tell them in the words of the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mtl_plugins.mm.data_check.annotations import broken_annotations
from mtl_plugins.mm.data_check.dense import broken_labels
from mtl_plugins.mm.data_check.files import missing_data
from mtl_plugins.mm.data_check.heads import class_count_problem, unlabelled_task
from mtl_plugins.mm.data_check.sets import open_datasets

if TYPE_CHECKING:
    from mmengine.runner import Runner

__all__ = [
    "broken_annotations",
    "broken_labels",
    "check_runner",
    "class_count_problem",
    "data_problem",
    "missing_data",
    "open_datasets",
    "unlabelled_task",
]


def data_problem(cfg: Mapping[str, Any], pseudo: bool = True) -> str | None:
    """Look for faults of a config and of the files that it names, before anything is built.

    Args:
        cfg: Whole config.
        pseudo: True if pseudo labels have to be there.

    Returns:
        The first problem: config key, what was found, what would be valid; None if there is none.
    """
    return missing_data(cfg, pseudo) or broken_annotations(cfg, pseudo) or broken_labels(cfg)


def check_runner(runner: Runner) -> None:
    """Check the data of a runner that is about to train, and its model's numbers of classes.

    Args:
        runner: Runner with its loops built, as hooks see it from ``before_run`` on.

    Raises:
        ValueError: :func:`data_problem` or :func:`class_count_problem` found something.
    """
    problem = data_problem(runner.cfg)
    for split in ("train", "val"):
        loop = getattr(runner, f"{split}_loop", None)
        dataset = getattr(getattr(loop, "dataloader", None), "dataset", None)
        metainfo = getattr(dataset, "metainfo", None) or {}
        key = f"{split}_dataloader.dataset"
        problem = problem or class_count_problem(runner.model, metainfo, key)
        if split == "train":
            problem = problem or unlabelled_task(runner.model, dataset, key)
    if problem:
        raise ValueError(problem)
