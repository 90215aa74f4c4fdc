"""MTAN's layout of NYUv2 and Cityscapes: ``{train,val}/<modality>/<number>.npy``.

NYUv2 has 13 classes, depth (metres) and normals; Cityscapes has 2, 7 and 19 classes and the inverse
depth. Classes are -1, and the other labels 0, where unknown.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from demo_scenes.cityscapes import LABELS, disparity
from demo_scenes.dense import edges, nyu_normals, save_array, sensor_depth
from demo_scenes.scene import CLASSES, Scene

NYU_CLASSES = (
    *("bed", "books", "ceiling", "chair", "floor", "furniture", "objects"),
    *("picture", "sofa", "table", "tv", "wall", "window"),
)

_NYU_NAME = {
    "wall-brick": "wall",
    "wall-tile": "wall",
    "floor-wood": "floor",
    "sports ball": "chair",
    "bottle": "objects",
    "cup": "objects",
    "book": "books",
    "clock": "picture",
    "teddy bear": "sofa",
    "person": "objects",
}
"""Class of NYUv2 that a drawn class stands for. Seven of the 13 classes are drawn."""

_NYU_CLASS = np.array([NYU_CLASSES.index(_NYU_NAME[name]) for name in CLASSES], np.int8)

_TRAIN_ID = np.array([LABELS[name].train_id for name in CLASSES], np.int8)

_CATEGORY_OF_TRAIN_ID = np.array(
    [0, 0, *[1] * 3, *[2] * 3, *[3] * 2, 4, *[5] * 2, *[6] * 6], np.int8
)
"""Cityscapes' categories flat, construction, object, nature, sky, human, vehicle."""

_FIRST_FOREGROUND = 5
"""First category of label_2's foreground, which is humans and vehicles."""


def write_nyuv2(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    """Write one split of NYUv2.

    Args:
        root: folder of the data set.
        split: ``"train"`` or ``"val"``.
        scenes: scenes, numbered from 0 in this order.
    """
    for number, scene in enumerate(scenes):
        maps = {
            "image": _image(scene),
            "label": np.where(edges(scene), np.int8(-1), _NYU_CLASS[scene.semantic]),
            "depth": sensor_depth(scene)[..., None],
            "normal": nyu_normals(scene),
        }
        for name, values in maps.items():
            save_array(root / split / name / f"{number}.npy", values)


def write_cityscapes_mt(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    """Write one split of Cityscapes.

    Args:
        root: folder of the data set.
        split: ``"train"`` or ``"val"``.
        scenes: scenes, numbered from 0 in this order.
    """
    for number, scene in enumerate(scenes):
        border = edges(scene)
        train_id = _TRAIN_ID[scene.semantic]
        category = _CATEGORY_OF_TRAIN_ID[train_id]
        foreground = (category >= _FIRST_FOREGROUND).astype(np.int8)
        maps = {
            "image": _image(scene),
            "label_2": np.where(border, np.int8(-1), foreground),
            "label_7": np.where(border, np.int8(-1), category),
            "label_19": np.where(border, np.int8(-1), train_id),
            # The number in Cityscapes' 16-bit file as a share of the largest.
            "depth": (disparity(scene) / np.float32(65535))[..., None],
        }
        for name, values in maps.items():
            save_array(root / split / name / f"{number}.npy", values)


def _image(scene: Scene) -> np.ndarray:
    """Make the image, float32 RGB ``[H, W, 3]`` in 0..1."""
    return scene.rgb.astype(np.float32) / 255
