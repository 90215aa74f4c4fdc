"""Labels of dense prediction that the layouts of NYUv2, Cityscapes and PASCAL have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from demo_scenes.scene import Scene

_JUMP = 0.1
"""Least jump of the depth (metres) beside which a sensor sees nothing."""


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a ``.npy`` file; make the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def append_line(path: Path, line: str) -> None:
    """Add a line to a list of images; make the file and its folder if they are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def measured(scene: Scene) -> np.ndarray:
    """Find the pixels whose depth a sensor measures, bool ``[H, W]``.

    A projector to the right of the lens leaves a shadow on whatever is behind an object, along the
    object's left side: one pixel wide for every 96 pixels of the image's width.
    """
    depth, seen = scene.depth, np.ones(scene.depth.shape, bool)
    for step in range(1, depth.shape[1] // 96 + 1):
        seen[:, :-step] &= depth[:, :-step] - depth[:, step:] < _JUMP
    return seen


def sensor_depth(scene: Scene) -> np.ndarray:
    """Measure the depth, float32 ``[H, W]`` (metres), 0 where there is no measurement."""
    return np.where(measured(scene), scene.depth, np.float32(0))


def nyu_normals(scene: Scene) -> np.ndarray:
    """Turn the normals to NYU's axes, float32 ``[H, W, 3]``: x right, y down, z to the camera.

    A wall that faces the camera has (0, 0, 1). Vectors have length 1, and length 0 where the
    sensor has no measurement.
    """
    normals = scene.normals * np.array([1, 1, -1], np.float32)
    return normals * measured(scene)[..., None]


def normals_to_png(normals: np.ndarray) -> np.ndarray:
    """Encode normals as colours, uint8 ``[H, W, 3]``: v stands for 2 v / 255 - 1."""
    return np.round((normals + 1) * 127.5).astype(np.uint8)


def instances(scene: Scene) -> np.ndarray:
    """Number the surfaces, uint8 ``[H, W]``: wall and floor by class, then object by object."""
    numbers = scene.semantic.copy()
    for number, thing in enumerate(scene.objects, start=100):
        numbers[thing.visible_mask] = number
    return numbers


def edges(scene: Scene) -> np.ndarray:
    """Find the boundaries between visible surfaces, bool ``[H, W]``, one pixel thin.

    A boundary lies on the pixel to the left of it or above it.
    """
    numbers = instances(scene)
    found = np.zeros(numbers.shape, bool)
    found[:, :-1] |= numbers[:, :-1] != numbers[:, 1:]
    found[:-1] |= numbers[:-1] != numbers[1:]
    return found


def saliency(scene: Scene) -> np.ndarray:
    """Choose the object that is large and central, and return its visible mask, bool ``[H, W]``."""
    height, width = scene.depth.shape
    across = np.abs(np.arange(width) - (width - 1) / 2) / width
    down = np.abs(np.arange(height) - (height - 1) / 2) / height
    centrality = 1 - np.maximum(across, down[:, None])
    return max(
        (thing.visible_mask for thing in scene.objects),
        key=lambda mask: float(centrality[mask].sum()),
    )
