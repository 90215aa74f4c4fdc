"""Find faults in the data that a config names, and tell them in the words of the config."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine.registry import DefaultScope

from mtl_plugins.registry import suggest

if TYPE_CHECKING:
    from mmengine.runner import Runner
    from torch import nn

    from mtl_plugins.mm.datasets import DenseDataset

Json = dict[str, Any]

# Keys that COCO's format asks of every record, as far as the loaders read them.
COCO_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area"),
    "categories": ("id", "name"),
}
ROOTS = (
    *("COCO_ROOT", "CITYSCAPES_ROOT", "BDD100K_ROOT", "BDD100K_DERIVED", "METAGRASPNET_ROOT"),
    *("METAGRASPNET_DERIVED", "NYUV2_ROOT", "CITYSCAPES_MTAN_ROOT", "NYUD_ROOT", "PASCAL_ROOT"),
)
"""Environment variables that our configs read."""

BYTES_ONLY = {"PhotoMetricDistortion", "CLAHE", "AdjustGamma"}
"""Transforms of MMSegmentation that turn any image into uint8 without scaling it."""

OPENED = 8
"""Number of images of a set that are opened, evenly spread over its file from the first on."""


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


def unlabelled_task(model: nn.Module, dataset: Any, key: str) -> str | None:
    """Look for heads of dense prediction that no data set has labels for.

    Args:
        model: Model that is trained, also in a wrapper for several processes.
        dataset: Data set, also a concatenation or repetition of such.
        key: Config key of the data set, for the message.

    Returns:
        The problem; None if there is none, or a data set is not of dense prediction.
    """
    from mtl_plugins.mm.datasets import DenseDataset
    from mtl_plugins.mm.models import MultiTaskSegmentor
    from mtl_plugins.mm.models.multi_task_segmentor import field_of
    from mtl_plugins.mm.optim.model import unwrapped

    model = unwrapped(model)
    sets = [dataset]
    while any(hasattr(one, "datasets") or hasattr(one, "dataset") for one in sets):
        inner = (getattr(one, "datasets", [getattr(one, "dataset", one)]) for one in sets)
        sets = [one for ones in inner for one in ones]
    if not isinstance(model, MultiTaskSegmentor) or not all(
        isinstance(one, DenseDataset) for one in sets
    ):
        return None
    fields = {name for one in sets for name in one.fields}
    for task, head in model.heads.items():
        if field_of(head) not in fields:
            return (
                f"model.heads.{task}: nothing would train it, since {key} has no "
                f"{field_of(head)!r}, but {', '.join(sorted(fields))}; add it to the fields of the "
                "data set, or remove the head"
            )
    return None


def class_count_problem(
    model: nn.Module, metainfo: Mapping[str, Any], key: str = "train_dataloader.dataset"
) -> str | None:
    """Look for heads that have another number of classes than the data.

    MMDetection's ``NumClassCheckHook`` finds no semantic head, and takes panoptic and
    class-agnostic ones for wrong.

    Args:
        model: Model that is trained, also in a wrapper for several processes.
        metainfo: Metainfo of the data set; without ``classes`` nothing is known.
        key: Config key of the data set, for the message.

    Returns:
        The problem, in which all these heads are named; None if there is none.
    """
    from mmdet.models.roi_heads.mask_heads import FusedSemanticHead
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    from mtl_plugins.mm.optim.model import unwrapped

    model = unwrapped(model)
    classes = metainfo.get("classes")
    if classes is None or hasattr(model, "language_model"):  # classes are words of a prompt
        return None
    if isinstance(classes, str):
        return _no_comma(key, classes)
    wrong: list[str] = []
    named = classes
    for name, module in model.named_modules():
        parts = name.split(".")
        count = getattr(module, "num_classes", None)
        # A head of dense prediction names its label; its decoder below it does not.
        owners = [model.get_submodule(".".join(parts[: i + 1])) for i in range(len(parts))]
        field = next((f for o in owners if isinstance(f := getattr(o, "field", None), str)), None)
        if (
            not isinstance(count, int)
            or parts[0] in ("", "backbone", "neck")
            or "rpn_head" in parts
            or "loss" in parts[-1]
            or isinstance(module, FusedSemanticHead)
            or (getattr(module, "class_agnostic", False) and field is None)
        ):
            continue
        known, attribute = [classes], "num_classes"
        if hasattr(module, "num_stuff_classes"):
            attribute = "num_things_classes + num_stuff_classes"
            count = module.num_things_classes + module.num_stuff_classes
        elif field not in (None, "sem_seg"):
            names = f"{field}_classes"
            known = [metainfo[names]] if names in metainfo else []
        elif parts[-1] == "semantic_head":
            known = [metainfo[name] for name in ("seg_classes",) if name in metainfo]
        elif "thing_classes" in metainfo and not isinstance(module, BaseDecodeHead):
            known = [metainfo["thing_classes"], classes]
        if known and count not in map(len, known):
            place = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)
            wrong.append(f"model{place}.{attribute} is {count}")
            named = known[0]
    if not wrong:
        return None
    return (
        f"{', '.join(wrong)}, but {key} has {len(named)} classes: {', '.join(named)}. Set the "
        "former to that number, or metainfo.classes of all data sets to the classes of the model"
    )


def missing_data(cfg: Mapping[str, Any], pseudo: bool = True) -> str | None:
    """Look for data that is not there, before anything is built.

    Args:
        cfg: Whole config.
        pseudo: True if pseudo labels have to be there.

    Returns:
        The first problem: config key, what was found, what would be valid; None if there is none.
    """
    for key, dataset in _local_datasets(cfg):
        if (kind := _dense(dataset)) is not None:
            if problem := _layout(key, dataset, kind):
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


def broken_annotations(cfg: Mapping[str, Any], pseudo: bool = True) -> str | None:
    """Read the annotation files in COCO's format, and open a few of their images.

    Args:
        cfg: Whole config, of which :func:`missing_data` finds nothing missing.
        pseudo: True to read pseudo labels too.

    Returns:
        The first problem, as for :func:`missing_data`, with file and id.
    """
    for key, dataset in _local_datasets(cfg):
        if (use := _use(key, dataset)) is None:
            continue
        if "img" not in (dataset.get("data_prefix") or {}):
            return (
                f"{key}.data_prefix: has no 'img', the folder of the images below data_root; "
                "dict(img='') if file_name in ann_file begins there"
            )
        if isinstance(use.classes, str):
            return _no_comma(key, use.classes)
        files = {"ann_file": use.objects}
        if pseudo and dataset.get("pseudo_ann_file"):
            files["pseudo_ann_file"] = True
        for name, objects in files.items():
            path = Path(dataset.get("data_root") or ".", dataset[name])
            opened = use.opened if name == "ann_file" else None
            stat = path.stat()
            read = repr((path, stat.st_mtime_ns, stat.st_size, use, objects, opened))
            if read not in _FOUND:  # a large file takes seconds
                _FOUND[read] = _in_file(path, use, objects, opened)
            if found := _FOUND[read]:
                where, what = found
                return f"{key}.{where or name}: {what}"
    return None


def broken_labels(cfg: Mapping[str, Any]) -> str | None:
    """Load a few images of every data set of dense prediction, and their labels.

    Args:
        cfg: Whole config, of which :func:`missing_data` finds nothing missing.

    Returns:
        The first problem, as for :func:`missing_data`, with file and field.
    """
    for key, options in _local_datasets(cfg):
        if (kind := _dense(options)) is None:
            continue
        from mtl_plugins.mm.transforms import LoadMultiTask

        dataset = _lazily(options, kind)
        dataset.full_init()
        steps = dataset.pipeline.transforms
        if not any(isinstance(step, LoadMultiTask) for step in steps):
            continue
        jitter = [name for step in steps if (name := type(step).__name__) in BYTES_ONLY]
        for i in range(0, len(dataset), max(1, math.ceil(len(dataset) / OPENED))):
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


def _dense(options: Mapping[str, Any]) -> type[DenseDataset] | None:
    """Return the class of a data set of dense prediction; None for other data sets."""
    if "mtl_plugins.mm.datasets.dense" not in sys.modules:  # importing it takes a second
        return None
    from mmseg.registry import DATASETS

    from mtl_plugins.mm.datasets import DenseDataset

    kind = options.get("type")
    cls: Any = DATASETS.get(kind) if isinstance(kind, str) else kind
    return cls if isinstance(cls, type) and issubclass(cls, DenseDataset) else None


def _lazily(options: Mapping[str, Any], kind: type[DenseDataset]) -> DenseDataset:
    """Build a data set that has looked for no file yet."""
    given = {name: value for name, value in options.items() if name != "type"}
    with DefaultScope.overwrite_default_scope("mmseg"):
        return kind(**{**given, "lazy_init": True})


def _layout(key: str, options: Mapping[str, Any], kind: type[DenseDataset]) -> str | None:
    """Return a problem of the options or the folder of a data set of dense prediction."""
    try:
        problem = _lazily(options, kind).layout_problem()
    except (TypeError, ValueError) as error:
        return f"{key}: {error}"
    return problem and f"{key}.data_root: {problem}"


@dataclass
class _Opening:
    """Steps and folders by which the images of a set are opened.

    Attributes:
        folder: Folder of the images.
        load: Step of the pipeline that loads an image.
        depth: Step that loads depth; None if there is none.
        depth_folder: Folder to which ``depth_file_name`` is relative.
    """

    folder: str
    load: Mapping[str, Any]
    depth: Mapping[str, Any] | None
    depth_folder: str


@dataclass
class _Use:
    """Parts of an annotation file that a data set takes.

    Attributes:
        classes: Names, in order; a word where a comma was forgotten.
        masks: True if masks are loaded.
        objects: True if the objects in the file are labels.
        trains: True if the data set is trained on.
        opened: Way to open images; None if the pipeline opens none.
    """

    classes: tuple[str, ...] | str
    masks: bool
    objects: bool
    trains: bool
    opened: _Opening | None


def _use(key: str, dataset: Mapping[str, Any]) -> _Use | None:
    """Tell how ``CocoDataset`` or one of its kin reads a file; None for other data sets."""
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
        opened = _Opening(
            folder=str(root / prefix["img"]),
            load=steps["LoadImageFromFile"],
            depth=steps.get("LoadDepth"),
            depth_folder=str(root / prefix.get("depth", prefix["img"])),
        )
    return _Use(
        classes=classes if isinstance(classes, str) else tuple(classes),
        masks=bool(steps.get("LoadAnnotations", {}).get("with_mask"))
        or "LoadAmodalAnnotations" in steps,
        objects=dataset.get("boxes", True),
        trains=key.startswith("train") and not dataset.get("test_mode", False),
        opened=opened,
    )


_Found = tuple[str | None, str] | None
"""Problem of a data set: its key in the config, None for the file's own key, and the words."""

_FOUND: dict[str, _Found] = {}
"""Verdicts by all that they depend on, such as the file's time and size."""


def _in_file(path: Path, use: _Use, objects: bool, opened: _Opening | None) -> _Found:
    """Return the first problem of an annotation file and its images.

    Args:
        path: Path of the file.
        use: Parts of the file that the data set takes.
        objects: True if the objects in the file are labels.
        opened: Way to open images; None to open none.
    """
    file = repr(str(path))
    if (content := _head(path)) is None:
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            return None, f"{file} is not JSON: {error}"
    if not isinstance(content, dict):
        return None, f"{file} holds a {type(content).__name__}, COCO's format an object"
    for part, keys in COCO_KEYS.items():
        needed = set(keys)
        if part not in content:
            return None, (
                f"{file} has no {part!r}; COCO's format has {list(COCO_KEYS)}, the file has "
                f"{list(content)}"
            )
        for record in content[part]:
            if not needed <= record.keys():
                missing = [name for name in keys if name not in record]
                return None, (
                    f"in {file}, {part} has a record without {missing}: it has {list(record)}"
                )
        ids = Counter(record["id"] for record in content[part])
        if len(ids) < len(content[part]):
            number = ids.most_common(1)[0][0]
            return None, f"in {file}, {ids[number]} records of {part} have the id {number!r}"
    images = {image["id"]: image for image in content["images"]}
    if objects and (problem := _classes(content["categories"], use.classes, file)):
        return "metainfo.classes", problem
    if objects and "lazily" not in content and (problem := _objects(content, images, use, file)):
        return None, problem
    return _opened(images, opened, file) if opened else None


def _head(path: Path) -> Json | None:
    """Read all but the objects, if these are read one image at a time; else return None."""
    from mtl_plugins.mm.datasets.lazy import LazyObjects

    lazy = LazyObjects.of(path)
    return {**lazy.head, "annotations": [], "lazily": True} if lazy else None


def _classes(categories: Sequence[Json], classes: Sequence[str], file: str) -> str | None:
    """Return a problem of the class names; labels are numbered in the order of the file's names."""
    names = [category["name"] for category in categories]
    found = [name for name in names if name in set(classes)]
    if found == list(classes):
        return None
    both = f"The classes are {_listed(classes)}; the categories of {file} are {_listed(names)}"
    missing = [name for name in classes if name not in names]
    if missing:
        return (
            f"{_listed(missing)} is no category of the file, so that its objects would be dropped "
            f"and the labels of later classes shift; {suggest(missing[0], names).split('Valid')[0]}"
            f"{both}"
        )
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        return f"{_listed(twice)} is the name of several categories. {both}"
    return (
        f"labels are numbered in the order of the file's categories, so that the classes have to "
        f"stand in that order. {both}"
    )


def _objects(content: Json, images: Mapping[Any, Json], use: _Use, file: str) -> str | None:
    """Return a problem of the objects, by the rules by which ``CocoDataset`` reads them."""
    wanted = {one["id"] for one in content["categories"] if one["name"] in set(use.classes)}
    kept = 0
    for one in content["annotations"]:
        image = images.get(one["image_id"])
        if image is None or one.get("ignore"):
            continue
        try:
            x, y, w, h = one["bbox"]
            usable = (
                math.isfinite(x + y + w + h)
                and w >= 1
                and h >= 1
                and one["area"] > 0
                and min(x + w, image["width"]) > max(x, 0)
                and min(y + h, image["height"]) > max(y, 0)
            )
            proper = usable or math.isfinite(x + y + w + h)
        except (TypeError, ValueError):
            proper = False
        if not proper:
            return (
                f"in {file}, the annotation with the id {one['id']!r} has the bbox {one['bbox']!r} "
                f"and the area {one['area']!r}; expected are four finite numbers x, y, width, "
                "height, and one"
            )
        if not usable or one["category_id"] not in wanted:
            continue  # as CocoDataset does
        kept += not one.get("iscrowd")
        if use.masks and (problem := _mask(one.get("segmentation"), image)):
            return (
                f"in {file}, the annotation with the id {one['id']!r}, of the image "
                f"{image['file_name']!r}, has {problem}"
            )
    if use.trains and not kept:
        return (
            f"none of the {len(content['annotations'])} annotations of {file} is an object to "
            f"train on: of an image of the file, of one of the classes {_listed(use.classes)}, no "
            "crowd, and a box at least a pixel wide and high inside its image (x, y, width, "
            "height in pixels)"
        )
    return None


def _mask(segmentation: Any, image: Json) -> str | None:
    """Return the fault of a mask, if it has one."""
    size = [image["height"], image["width"]]
    if not segmentation:
        return (
            f"the segmentation {segmentation!r}, but masks are trained: leave the annotation out, "
            "or give it polygons or an RLE"
        )
    if isinstance(segmentation, list):
        if not all(isinstance(polygon, list) for polygon in segmentation):
            return (
                "a segmentation that is a list of numbers; expected is a list of polygons, "
                "[[x1, y1, x2, y2, ...], ...]"
            )
        return None
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "a segmentation that is neither a list of polygons nor an RLE with size and counts"
    if list(segmentation["size"]) != size:
        return f"an RLE of the size {segmentation['size']}; its image has {size} (height, width)"
    counts = segmentation["counts"]
    if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
        return f"an RLE of {sum(counts)} pixels; its image has {size[0] * size[1]}"
    return None


def _opened(images: Mapping[Any, Json], opened: _Opening, file: str) -> _Found:
    """Return a problem of some images, as the pipeline's own step loads them."""
    from mmdet.registry import TRANSFORMS
    from PIL import Image

    load = TRANSFORMS.build(opened.load)
    every = list(images.values())
    chosen = every[:: max(1, math.ceil(len(every) / OPENED))]
    for image in chosen:
        path = Path(opened.folder, image["file_name"])
        name = f"the image {str(path)!r} (id {image['id']!r})"
        if not path.is_file():
            return "data_prefix.img", f"{name}, which {file} lists, is not there"
        try:
            loaded = load.transform({"img_path": str(path)})["img"].shape[:2]
            with Image.open(path) as header:
                orientation = header.getexif().get(0x0112, 1)
                stored = header.size[::-1]
        except Exception as error:  # each decoder has its own errors
            return "data_prefix.img", f"{name} cannot be read: {error}"
        told = (image["height"], image["width"])
        turned = (
            f"the file has {_size(stored)} and the EXIF orientation {orientation}, by which "
            "LoadImageFromFile turns it"
        )
        if loaded != told:
            hint = (
                f": {turned}. Take the tag out of the images, or load them with "
                "color_type='color_ignore_orientation'"
                if orientation != 1 and stored != loaded
                else ""
            )
            return None, f"{name} has {_size(loaded)}, {file} says {_size(told)}{hint}"
        if orientation != 1 and "ignore" not in opened.load.get("color_type", ""):
            warnings.warn(
                f"{name}: {turned}; its labels have to be those of the turned image", stacklevel=2
            )
    return _depth(chosen, opened, file) if opened.depth else None


def _depth(images: Sequence[Json], opened: _Opening, file: str) -> _Found:
    """Return a problem of the depth of some images, such as no pixel within the range."""
    from mmdet.registry import TRANSFORMS

    load = TRANSFORMS.build(opened.depth)
    measured = []
    for image in images:
        path = Path(opened.depth_folder, image.get("depth_file_name", ""))
        if not path.is_file():
            return "data_prefix.depth", (
                f"the depth {str(path)!r} of the image with the id {image['id']!r}, which {file} "
                "lists, is not there"
            )
        measured.append((path, load.measured(str(path))))
        if load.tells_apart(measured[-1][1]):
            return None
    if not measured:
        return None
    return "pipeline", load.out_of_range(*measured[0])


def _no_comma(key: str, classes: str) -> str:
    return (
        f"{key}.metainfo.classes: {classes!r} is a word, not a list of classes (nor a file that "
        f"is there); one class is classes=({classes!r},)"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]}"


def _local_datasets(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
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
