"""Open a few images of an annotation file, and their depth, as the pipeline loads them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtl_plugins.mm.data_check.sets import Json, Problem, some


@dataclass
class Opening:
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


def broken_images(images: Mapping[Any, Json], opened: Opening, file: str) -> Problem:
    """Return a problem of some images, as the pipeline's own step loads them."""
    from mmdet.registry import TRANSFORMS
    from PIL import Image

    load = TRANSFORMS.build(opened.load)
    every = list(images.values())
    chosen = [every[i] for i in some(len(every))]
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


def _depth(images: Sequence[Json], opened: Opening, file: str) -> Problem:
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


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]}"
