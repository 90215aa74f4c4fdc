"""``PASCAL_MT``, the layout of PASCAL-Context: classes, human parts, normals, saliency and edges.

Edges are not stored: they are the borders of PASCAL-Context's segments. Both folders with maps of
the 21 classes are written, every other image into the one and the rest into the other.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from demo_scenes.dense import (
    append_line,
    edges,
    measured,
    normals_to_png,
    nyu_normals,
    saliency,
)
from demo_scenes.figure import PARTS
from demo_scenes.images import save_image
from demo_scenes.scene import CLASSES, Scene, SceneObject
from demo_scenes.things import OBJECTS

KINDS = (*OBJECTS, *["person"] * 3)
"""Categories of the objects; this layout alone has persons."""


class Label(NamedTuple):
    """Number among PASCAL's 21 classes, and name and number among PASCAL-Context's 459 classes."""

    number: int
    context: str
    context_number: int


LABELS = {
    "wall-brick": Label(0, "wall", 440),
    "wall-tile": Label(0, "wall", 440),
    "floor-wood": Label(0, "floor", 158),
    "bottle": Label(5, "bottle", 34),
    "sports ball": Label(9, "chair", 72),
    "book": Label(11, "table", 397),
    "person": Label(15, "person", 284),
    "cup": Label(16, "pottedplant", 308),
    "teddy bear": Label(17, "sheep", 347),
    "clock": Label(20, "tvmonitor", 427),
}
"""Classes that a drawn class stands for."""

NYU_CLASSES = {
    **{"table": 19, "unknown": 20, "wall": 21},
    **{"bottle": 2, "chair": 5, "floor": 11, "person": 331},
}
"""NYUv2's classes as far as they are drawn. Without a namesake here, ``pottedplant`` and ``sheep``
have no normals, while ``tvmonitor`` has them all the same."""

PART_NUMBERS = {
    **{"head": 1, "torso": 11, "neck": 12, "llarm": 13, "luarm": 14, "lhand": 15, "rlarm": 16},
    **{"ruarm": 17, "rhand": 18, "llleg": 19, "luleg": 20, "lfoot": 21, "rlleg": 22, "ruleg": 23},
    "rfoot": 24,
}
"""Numbers of ``pascal_part.json``."""

_BORDER = 255
_CLASS = np.array([LABELS[name].number for name in CLASSES], np.uint8)
_CONTEXT = np.array([LABELS[name].context_number for name in CLASSES], np.uint16)
_NAMES = {5: "bottle", 9: "chair", 11: "diningtable", 15: "person", 16: "pottedplant"}
_NAMES |= {17: "sheep", 20: "tvmonitor"}


def write_pascal(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    """Write one split.

    Args:
        root: folder of the data set.
        split: ``"train"`` or ``"val"``.
        scenes: scenes; the names of those of ``"train"`` begin with 2008, of ``"val"`` with 2009.
    """
    # Only this layout needs SciPy; the other layouts are drawn without.
    if find_spec("scipy") is None:
        sys.exit("--layout pascal: needs scipy; pip install 'mtl-plugins[dense]'")
    _write_db_info(root / "db_info")
    for number, scene in enumerate(scenes):
        name = f"{2008 if split == 'train' else 2009}_{number:06d}"
        append_line(root / f"ImageSets/Context/{split}.txt", name)
        save_image(root / f"JPEGImages/{name}.jpg", scene.rgb)
        classes = np.where(edges(scene), np.uint8(_BORDER), _CLASS[scene.semantic])
        folder = ("VOC12", "pascal-context")[number % 2]
        save_image(root / f"semseg/{folder}/{name}.png", classes)
        context = _CONTEXT[scene.semantic]
        _save_mat(root / f"pascal-context/trainval/{name}.mat", {"LabelMap": context})
        _save_mat(root / f"human_parts/{name}.mat", {"anno": _parts(name, scene)})
        # Black, which stands for no vector of length 1, where there is no measurement.
        normals = normals_to_png(nyu_normals(scene)) * measured(scene)[..., None]
        save_image(root / f"normals_distill/{name}.png", normals)
        save_image(root / f"sal_distill/{name}.png", saliency(scene).astype(np.uint8) * 255)


def _write_db_info(folder: Path) -> None:
    """Write the tables of classes and parts, as far as they are drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    context = {label.context: label.context_number for label in LABELS.values()}
    parts = {str(number): PART_NUMBERS if number == 15 else {} for number in range(1, 21)}
    for name, table in (
        ("context_classes", {**context, "unknown": 431}),
        ("nyu_classes", NYU_CLASSES),
        ("pascal_part", parts),
    ):
        (folder / f"{name}.json").write_text(json.dumps(table) + "\n", encoding="utf-8")


def _parts(name: str, scene: Scene) -> dict[str, Any]:
    """Make the structure ``anno`` of PASCAL-Part: objects, each with the masks of its parts."""
    things = [
        (
            _NAMES[LABELS[thing.category].number],
            LABELS[thing.category].number,
            thing.visible_mask.astype(np.uint8),
            _parts_of(thing, scene),
        )
        for thing in scene.objects
    ]
    return {"imname": name, "objects": _structures(("class", "class_ind", "mask", "parts"), things)}


def _parts_of(thing: SceneObject, scene: Scene) -> np.ndarray:
    """List the visible parts of a person with their masks; no other object has parts."""
    if thing.category != "person":
        return np.zeros((0, 0))
    masks = [thing.visible_mask & (scene.parts == index) for index in range(len(PARTS))]
    seen = zip(PARTS, masks, strict=True)
    return _structures(
        ("part_name", "mask"),
        [(part, mask.astype(np.uint8)) for part, mask in seen if mask.any()],
    )


def _structures(fields: Iterable[str], rows: list[tuple[Any, ...]]) -> np.ndarray:
    """Make an array of MATLAB's structures, ``[1, N]``."""
    array = np.empty((1, len(rows)), [(field, object) for field in fields])
    for index, row in enumerate(rows):
        array[0, index] = row
    return array


def _save_mat(path: Path, content: dict[str, Any]) -> None:
    """Write a ``.mat`` file; make the folder if it is missing."""
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, content, do_compression=True)
    # SciPy puts the date into the header's text: the same scene would give another file.
    text = b"MATLAB 5.0 MAT-file".ljust(116)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text + buffer.getvalue()[len(text) :])
