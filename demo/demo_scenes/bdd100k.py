"""BDD100K's official layout: detection in ``images/100k``, segmentation in ``images/10k``.

The two tasks have labels on different images: scenes with an even number get boxes
(``labels/det_20``, Scalabel's format), scenes with an odd number a mask (``labels/sem_seg/masks``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from demo_scenes.cityscapes import LABELS
from demo_scenes.images import save_image
from demo_scenes.scene import CLASSES, Scene, SceneObject

Json = dict[str, Any]

_TRAIN_ID = np.array([LABELS[name].train_id for name in CLASSES], np.uint8)
"""Train id of Cityscapes, which BDD100K's masks hold, for each value of ``Scene.semantic``."""


def write_bdd100k(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    """Write one split.

    Args:
        root: folder of the data set.
        split: ``"train"`` or ``"val"``.
        scenes: scenes, numbered from 0 in this order.
    """
    frames: list[Json] = []
    for number, scene in enumerate(scenes):
        stem = f"{split}-{number:06d}"
        if number % 2:
            save_image(root / f"images/10k/{split}/{stem}.jpg", scene.rgb)
            mask = _TRAIN_ID[scene.semantic]
            save_image(root / f"labels/sem_seg/masks/{split}/{stem}.png", mask)
        else:
            save_image(root / f"images/100k/{split}/{stem}.jpg", scene.rgb)
            frames.append(_frame(f"{stem}.jpg", scene))
    path = root / f"labels/det_20/det_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(frames), encoding="utf-8")


def _frame(name: str, scene: Scene) -> Json:
    height, width = scene.depth.shape
    return {
        "name": name,
        "attributes": dict.fromkeys(("weather", "timeofday", "scene"), "undefined"),
        "timestamp": 10000,
        "labels": [
            {"id": str(number), **_label(thing, width, height)}
            for number, thing in enumerate(scene.objects)
        ],
    }


def _label(thing: SceneObject, width: int, height: int) -> Json:
    """Make Scalabel's record of an object, without an id."""
    name = LABELS[thing.category].name
    x, y, w, h = thing.visible_box
    whole_x, whole_y, whole_w, whole_h = thing.amodal_box
    return {
        "attributes": {
            "occluded": thing.occlusion > 0,
            "truncated": min(whole_x, whole_y) == 0
            or whole_x + whole_w == width
            or whole_y + whole_h == height,
            "trafficLightColor": "NA",
        },
        # Only this name differs between BDD100K and Cityscapes.
        "category": "pedestrian" if name == "person" else name,
        # Corners are pixels of the box, the far corner included.
        "box2d": {"x1": x, "y1": y, "x2": x + w - 1, "y2": y + h - 1},
    }
