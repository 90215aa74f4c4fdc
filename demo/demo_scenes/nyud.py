"""``NYUD_MT``, the layout of NYUv2 with 40 classes: a folder a label, ``gt_sets/{train,val}.txt``.

Two forms of it are in use under the same names. Images are JPEGs, edges and normals arrays; or all
three are PNGs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from demo_scenes.dense import (
    append_line,
    edges,
    measured,
    normals_to_png,
    nyu_normals,
    save_array,
    sensor_depth,
)
from demo_scenes.images import save_image
from demo_scenes.scene import CLASSES, Scene

LABELS = {
    "wall-brick": 1,
    "wall-tile": 1,
    "floor-wood": 2,
    "sports ball": 5,
    "teddy bear": 6,
    "clock": 11,
    "book": 23,
    "cup": 35,
    "bottle": 40,
    "person": 31,
}
"""Value in ``segmentation/`` for each drawn class, 0 being unlabelled: wall, floor, chair, sofa,
picture, books, lamp, other prop and person of the 40 classes."""

_LABEL = np.array([LABELS[name] for name in CLASSES], np.uint8)


def write_nyud(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    """Write one split with images in JPEG, edges and normals in ``.npy``.

    Args:
        root: folder of the data set.
        split: ``"train"`` or ``"val"``.
        scenes: scenes; those of ``"train"`` have odd numbers and those of ``"val"`` even ones.
    """
    for name, scene in _named(root, split, scenes):
        save_image(root / f"images/{name}.jpg", scene.rgb)
        save_array(root / f"normals/{name}.npy", nyu_normals(scene))
        save_array(root / f"edge/{name}.npy", edges(scene).astype(np.uint8))


def write_nyud_png(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    """Write one split with images, edges and normals in PNG, see :func:`write_nyud`."""
    for name, scene in _named(root, split, scenes):
        save_image(root / f"images/{name}.png", scene.rgb)
        # Black, which stands for no vector of length 1, where there is no measurement.
        normals = normals_to_png(nyu_normals(scene)) * measured(scene)[..., None]
        save_image(root / f"normals/{name}.png", normals)
        save_image(root / f"edge/{name}.png", edges(scene).astype(np.uint8) * 255)


def _named(root: Path, split: str, scenes: Iterable[Scene]) -> Iterable[tuple[str, Scene]]:
    """Name each scene, and write what both forms have in common."""
    for number, scene in enumerate(scenes):
        name = f"{2 * number + (1 if split == 'train' else 2):04d}"
        append_line(root / f"gt_sets/{split}.txt", name)
        labels = np.where(edges(scene), np.uint8(0), _LABEL[scene.semantic])
        save_image(root / f"segmentation/{name}.png", labels)
        save_array(root / f"depth/{name}.npy", sensor_depth(scene))
        yield name, scene
