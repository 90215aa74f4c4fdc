"""Train loaders that a resumed run continues, and checks of the data of a config."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data.build import _train_loader_from_config
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch.utils.data import Sampler

from mtl_plugins.registry import suggest

# Key of a number of classes, and the metadata of a data set that counts them, by meta architecture.
_THINGS = ("MODEL.ROI_HEADS.NUM_CLASSES", "thing_classes")
_STUFF = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "stuff_classes")
CLASS_COUNTS = {
    "GeneralizedRCNN": (_THINGS,),
    "PanopticFPN": (_THINGS, _STUFF),
    "RetinaNet": (("MODEL.RETINANET.NUM_CLASSES", "thing_classes"),),
    "SemanticSegmentor": (_STUFF,),
}
# Endings of names of metadata of a data set whose values are paths.
PATHS = ("_root", "_dir", "_file", "_json", "dirname")


class TrainLoader:
    """Batches of ``build_detection_train_loader``, from the first batch or from a later one.

    Earlier batches are not loaded. A later start finds the same images if the sampler has the same
    seed, which ``SEED`` sets, and with ``DATALOADER.NUM_WORKERS`` 0: workers take the images in
    another order than the sampler's. Augmentations are drawn anew for images that were loaded and
    still waited for others of their orientation, and by workers.

    Args:
        cfg: Config of Detectron2.
        mapper: Function from an entry of the data set to the model's input; by default
            ``DatasetMapper(cfg)``.

    Attributes:
        start: Number of the first batch of this rank.

    Raises:
        ValueError: The classes of data sets and model differ, see :func:`class_problem`.
    """

    def __init__(self, cfg: CfgNode, mapper: Callable[[dict[str, Any]], Any] | None = None) -> None:
        try:
            self._options = _train_loader_from_config(cfg, mapper=mapper)
        except AssertionError as error:
            raise ValueError(f"DATASETS.TRAIN: {error}") from error
        loaded = self._options["dataset"]
        if problem := class_problem(cfg, loaded if isinstance(loaded, list) else ()):
            raise ValueError(problem)
        if isinstance(loaded, list):
            # Serialise as Detectron2 would: a large list of dicts takes several times the memory.
            self._options["dataset"] = DatasetFromList(loaded, copy=False)
        self.start = 0

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        if self.start == 0:
            yield from build_detection_train_loader(**self._options)
            return
        options = self._options | {"sampler": _Rest(self._options, self.start)}
        batches = build_detection_train_loader(**options)
        # Draw the seed of the workers apart: the interrupted run drew one from the global state.
        loader = batches.dataset if options["aspect_ratio_grouping"] else batches
        loader.generator = torch.Generator().manual_seed(torch.initial_seed() + self.start)
        yield from batches


class _Rest(Sampler):
    """Indices of a sampler, without the indices of the first batches.

    Args:
        options: Options of the train loader.
        batches: Number of batches to leave out.
    """

    def __init__(self, options: dict[str, Any], batches: int) -> None:
        self._options = options
        self._batches = batches

    def __iter__(self) -> Iterator[int]:
        size = self._options["total_batch_size"] // comm.get_world_size()
        indices = iter(self._options["sampler"])
        waiting: dict[bool, list[int]] = {True: [], False: []}  # by orientation
        passed = 0
        while passed < self._batches:
            index = next(indices)
            group = waiting[self._is_wide(index)]
            group.append(index)
            if len(group) == size:
                group.clear()
                passed += 1
        yield from waiting[True] + waiting[False]
        yield from indices

    def _is_wide(self, index: int) -> bool:
        if not self._options["aspect_ratio_grouping"]:
            return True
        image = self._options["dataset"][index]
        return bool(image["width"] > image["height"])


def missing_data(cfg: CfgNode, splits: Sequence[str] = ("TRAIN", "TEST")) -> str | None:
    """Look for data sets that are not there, before anything is built.

    Args:
        cfg: Config of Detectron2.
        splits: Keys of ``DATASETS`` that are needed.

    Returns:
        First problem: config key, value found, valid values; None if all data sets are there.
    """
    for split in splits:
        for name in cfg.DATASETS[split]:
            if name not in DatasetCatalog.list():
                return f"DATASETS.{split}: no data set is registered as {name!r}; " + suggest(
                    name, sorted(DatasetCatalog.list())
                )
            for key, path in MetadataCatalog.get(name).as_dict().items():
                is_path = key.endswith(PATHS) and isinstance(path, str)
                if is_path and not PathManager.exists(path):
                    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
                    return (
                        f"DATASETS.{split}: {name!r} needs {path!r}, which is not there. The "
                        f"environment variable DETECTRON2_DATASETS, now {root!r}, says where "
                        "Detectron2's own data sets are"
                    )
    return None


def class_problem(cfg: CfgNode, train: Sequence[dict[str, Any]] = ()) -> str | None:
    """Compare the classes of the data sets with each other and with the model's numbers.

    Data sets of ``DATASETS.TEST`` are loaded for the comparison, if they are there. Models of
    another ``META_ARCHITECTURE`` than Detectron2's own are not looked at.

    Args:
        cfg: Config of Detectron2.
        train: Entries of ``DATASETS.TRAIN``, loaded.

    Returns:
        First problem, in the words of :func:`missing_data`; None if the classes agree.
    """
    names = {split: cfg.DATASETS[split] for split in ("TRAIN", "TEST")}
    if missing_data(cfg, ("TEST",)):
        names["TEST"] = ()
    for name in names["TEST"]:
        try:
            DatasetCatalog.get(name)  # fills the metadata
        except AssertionError as error:
            return f"DATASETS.TEST: {error}"
    largest = max((o["category_id"] for d in train for o in d.get("annotations", ())), default=-1)
    for key, kind in CLASS_COUNTS.get(cfg.MODEL.META_ARCHITECTURE, ()):
        value: Any = cfg
        for part in key.split("."):
            value = value[part]
        first: tuple[str, list[str]] | None = None
        for split, name in [(s, name) for s, of_split in names.items() for name in of_split]:
            classes = MetadataCatalog.get(name).get(kind)
            if classes is None:
                continue
            if value != len(classes):
                return (
                    f"{key} is {value}, but {name!r} of DATASETS.{split} has {len(classes)} "
                    f"classes ({kind}): {', '.join(classes)}. Set {key} to {len(classes)}"
                )
            first = first or (name, list(classes))
            if list(classes) != first[1]:
                return (
                    f"DATASETS.{split}: {name!r} has other classes ({kind}) than {first[0]!r}: "
                    f"{', '.join(classes)}; there {', '.join(first[1])}. Names and order have to "
                    "be the same"
                )
        if kind == "thing_classes" and largest >= value:
            return (
                f"{key} is {value}, but DATASETS.TRAIN has objects with the category_id {largest}; "
                f"category_ids go from 0 to {value - 1}"
            )
    return None
