"""Check a file in COCO's format: its records, its classes, its boxes and masks."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtl_plugins.mm.data_check.images import Opening, broken_images
from mtl_plugins.mm.data_check.sets import Json, Problem
from mtl_plugins.registry import suggest

# Keys that COCO's format asks of every record, as far as the loaders read them.
COCO_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area"),
    "categories": ("id", "name"),
}


@dataclass
class Use:
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
    opened: Opening | None


def file_problem(path: Path, use: Use, objects: bool, opened: Opening | None) -> Problem:
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
    return broken_images(images, opened, file) if opened else None


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


def _objects(content: Json, images: Mapping[Any, Json], use: Use, file: str) -> str | None:
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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
