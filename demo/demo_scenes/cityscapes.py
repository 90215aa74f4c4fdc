"""Cityscapes' official layout: ``leftImg8bit/``, polygons and their maps in ``gtFine/``, disparity.

The polygons are the truth, here as in Cityscapes: polygons are drawn back to front, a nearer object
hides all behind, and the maps are made of the polygons. Readers of the maps want all three splits,
so the validation images are written again under ``test``, where labels are withheld.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from demo_scenes.dense import measured, sensor_depth
from demo_scenes.images import save_image
from demo_scenes.scene import CLASSES, Scene, SceneObject
from demo_scenes.things import STUFF


class Label(NamedTuple):
    """A row of Cityscapes' table of labels."""

    name: str
    id: int
    train_id: int


LABELS = {
    "floor-wood": Label("road", 7, 0),
    "wall-brick": Label("building", 11, 2),
    "wall-tile": Label("wall", 12, 3),
    "teddy bear": Label("person", 24, 11),
    "bottle": Label("rider", 25, 12),
    "cup": Label("car", 26, 13),
    "book": Label("bus", 28, 15),
    "sports ball": Label("motorcycle", 32, 17),
    "clock": Label("bicycle", 33, 18),
    "person": Label("person", 24, 11),
}
"""Label of Cityscapes for each drawn class. Six kinds of object are drawn: of the eight instance
classes, truck and train stay empty."""

_UNLABELED, _IGNORED = 0, 255
_TRAIN_ID = np.full(256, _IGNORED, np.uint8)
_TRAIN_ID[[label.id for label in LABELS.values()]] = [label.train_id for label in LABELS.values()]

Polygon = tuple[str, np.ndarray]
"""Drawn class and its outline, int32 ``[N, 2]``: x, y of corner pixels, all in the shape."""


def write_cityscapes(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    """Write one split, and with ``"val"`` also ``"test"``.

    Args:
        root: folder of the data set.
        split: ``"train"`` or ``"val"``.
        scenes: scenes, numbered from 0 in this order.
    """
    for number, scene in enumerate(scenes):
        _write(root, split, number, scene, _polygons(scene))
        if split == "val":
            _write(root, "test", number, scene, [])


def disparity(scene: Scene) -> np.ndarray:
    """Make Cityscapes' map of disparities p, uint16 ``[H, W]``: (p - 1) / 256 pixels, 0 unknown.

    Base line and focal length are those of Cityscapes' cameras at full size, 0.22 m and 2262
    pixels, and the scene counts as a model of a street on a scale of 1 to 10.
    """
    depth = np.maximum(10 * sensor_depth(scene), 1e-6)
    values = np.round(256 * 0.22 * 2262 / depth) + 1
    return np.where(measured(scene), values, 0).astype(np.uint16)


def _write(root: Path, split: str, number: int, scene: Scene, polygons: list[Polygon]) -> None:
    # No city is in two splits, as in Cityscapes.
    city = f"{split}ville"
    stem = f"{split}/{city}/{city}_{number:06d}_000019"
    ids = _instance_ids(polygons, scene.camera.size)
    labels = np.where(ids < 1000, ids, ids // 1000).astype(np.uint8)
    save_image(root / f"leftImg8bit/{stem}_leftImg8bit.png", scene.rgb)
    save_image(root / f"disparity/{stem}_disparity.png", disparity(scene))
    save_image(root / f"gtFine/{stem}_gtFine_instanceIds.png", ids)
    save_image(root / f"gtFine/{stem}_gtFine_labelIds.png", labels)
    save_image(root / f"gtFine/{stem}_gtFine_labelTrainIds.png", _TRAIN_ID[labels])
    content = {
        "imgHeight": ids.shape[0],
        "imgWidth": ids.shape[1],
        "objects": [
            {"label": LABELS[name].name, "polygon": outline.tolist()} for name, outline in polygons
        ],
    }
    path = root / f"gtFine/{stem}_gtFine_polygons.json"
    path.write_text(json.dumps(content), encoding="utf-8")


def _polygons(scene: Scene) -> list[Polygon]:
    """Outline the stuff, then the whole of each object, from back to front."""
    stuff = [
        (name, outline)
        for name in STUFF
        for outline in _outlines(scene.semantic == CLASSES.index(name))
    ]
    # The image's edge may cut an object in two, but a polygon is one piece.
    things = [
        (thing.category, max(_outlines(thing.amodal_mask), key=cv2.contourArea))
        for thing in _back_to_front(scene.objects)
    ]
    return stuff + things


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Draw one polygon around each piece of a mask; holes are filled, as in Cityscapes."""
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    # A speck of a pixel or two is no polygon, and stays unlabelled.
    return [contour[:, 0] for contour in contours if len(contour) > 2]


def _back_to_front(things: tuple[SceneObject, ...]) -> list[SceneObject]:
    """Order objects so that each comes after all that it hides.

    There is no cycle, since no two objects overlap when seen from above.
    """
    hidden_by = {
        number: [
            other
            for other, behind in enumerate(things)
            if ((thing.amodal_depth < behind.amodal_depth) & behind.amodal_mask).any()
        ]
        for number, thing in enumerate(things)
    }
    return [things[number] for number in TopologicalSorter(hidden_by).static_order()]


def _instance_ids(polygons: list[Polygon], size: tuple[int, int]) -> np.ndarray:
    """Make the map of instances, uint16 ``[H, W]``.

    Stuff has its label; things have 1000 times their label plus a count from 0.
    """
    ids = np.full(size, _UNLABELED, np.uint16)
    seen: Counter[str] = Counter()
    for name, outline in polygons:
        number = LABELS[name].id
        if name not in STUFF:
            number = 1000 * number + seen[name]
            seen[name] += 1
        cv2.fillPoly(ids, [outline], number)
    return ids
