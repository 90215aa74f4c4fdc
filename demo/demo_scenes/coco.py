"""COCO's official layout: instances, panoptic segments and stuff maps of 2017, train and val.

``annotations/`` holds ``instances_*.json``, ``panoptic_*.json`` and the panoptic PNGs;
``stuffthingmaps/`` the COCO-Stuff pixel labels. All 80 things and 53 stuff classes are listed
under the official ids, so that configs for COCO load the data unmodified.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from demo_scenes.images import save_image
from demo_scenes.scene import CLASSES, Scene, box_of
from demo_scenes.things import STUFF

Json = dict[str, Any]

_THINGS_TABLE = """
person: 1 person
vehicle: 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat
outdoor: 10 traffic light, 11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench
animal: 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow, 22 elephant, 23 bear, 24 zebra
animal: 25 giraffe
accessory: 27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase
sports: 34 frisbee, 35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat
sports: 40 baseball glove, 41 skateboard, 42 surfboard, 43 tennis racket
kitchen: 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl
food: 52 banana, 53 apple, 54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza
food: 60 donut, 61 cake
furniture: 62 chair, 63 couch, 64 potted plant, 65 bed, 67 dining table, 70 toilet
electronic: 72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard, 77 cell phone
appliance: 78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator
indoor: 84 book, 85 clock, 86 vase, 87 scissors, 88 teddy bear, 89 hair drier, 90 toothbrush
"""

_STUFF_TABLE = """
textile: 92 banner, 93 blanket, 109 curtain, 141 pillow, 168 towel, 200 rug-merged
building: 95 bridge, 128 house, 151 roof, 166 tent, 197 building-other-merged
raw-material: 100 cardboard, 195 paper-merged
furniture-stuff: 107 counter, 112 door-stuff, 130 light, 133 mirror-stuff, 156 shelf, 161 stairs
furniture-stuff: 188 cabinet-merged, 189 table-merged
floor: 118 floor-wood, 190 floor-other-merged
plant: 119 flower, 184 tree-merged, 193 grass-merged
food-stuff: 122 fruit, 196 food-other-merged
ground: 125 gravel, 144 platform, 145 playingfield, 147 railroad, 149 road, 154 sand, 159 snow
ground: 191 pavement-merged, 194 dirt-merged
structural: 138 net, 185 fence-merged
water: 148 river, 155 sea, 178 water-other
wall: 171 wall-brick, 175 wall-stone, 176 wall-tile, 177 wall-wood, 199 wall-other-merged
window: 180 window-blind, 181 window-other
ceiling: 186 ceiling-merged
sky: 187 sky-other-merged
solid: 192 mountain-merged, 198 rock-merged
"""


def _categories(table: str) -> list[Json]:
    """Read COCO's records, by ascending id, from lines ``supercategory: id name, ...``."""
    categories = []
    for line in table.strip().splitlines():
        supercategory, members = line.split(": ")
        for member in members.split(", "):
            number, name = member.split(" ", 1)
            categories.append({"supercategory": supercategory, "id": int(number), "name": name})
    return sorted(categories, key=lambda category: category["id"])


THINGS = _categories(_THINGS_TABLE)
PANOPTIC = [
    {**category, "isthing": isthing}
    for table, isthing in ((_THINGS_TABLE, 1), (_STUFF_TABLE, 0))
    for category in _categories(table)
]

_ID_OF_NAME = {category["name"]: category["id"] for category in PANOPTIC}

_ID_OF_CLASS = np.array([_ID_OF_NAME[name] for name in CLASSES])
"""COCO's id for each value of ``Scene.semantic``. The three stuff classes drawn are among those
whose id is the same in COCO-Stuff and COCO Panoptic; most other stuff classes were merged."""


def write_coco(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    """Write one split.

    Args:
        root: folder of the data set.
        split: ``"train"`` or ``"val"``.
        scenes: scenes, numbered from 1 in this order.
    """
    name = f"{split}2017"
    images: list[Json] = []
    instances: list[Json] = []
    panoptic: list[Json] = []
    for image_id, scene in enumerate(scenes, start=1):
        stem = f"{image_id:012d}"
        save_image(root / name / f"{stem}.jpg", scene.rgb)
        height, width = scene.depth.shape
        images.append(
            {
                "license": 1,
                "file_name": f"{stem}.jpg",
                "height": height,
                "width": width,
                "id": image_id,
            }
        )
        for record in _instances(scene):
            instances.append({**record, "image_id": image_id, "id": len(instances) + 1})

        segment_map, segments = _panoptic(scene)
        save_image(root / "annotations" / f"panoptic_{name}" / f"{stem}.png", segment_map)
        panoptic.append(
            {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments}
        )
        # COCO-Stuff counts from 0, and keeps 255 for unlabelled pixels, of which there are none.
        stuff = (_ID_OF_CLASS - 1).astype(np.uint8)[scene.semantic]
        save_image(root / "stuffthingmaps" / name / f"{stem}.png", stuff)

    common = {
        "info": {"description": "Procedurally drawn scenes in COCO's layout", "version": "1.0"},
        "licenses": [{"id": 1, "name": "Drawn by a program, no photograph", "url": ""}],
        "images": images,
    }
    _save_json(
        root / "annotations" / f"instances_{name}.json",
        {**common, "annotations": instances, "categories": THINGS},
    )
    _save_json(
        root / "annotations" / f"panoptic_{name}.json",
        {**common, "annotations": panoptic, "categories": PANOPTIC},
    )


def polygons(mask: np.ndarray) -> list[list[float]]:
    """Find outlines x1, y1, x2, y2, ... (pixels) that rasterise to a mask, bool ``[H, W]``.

    COCO fills every outline and joins all of them, so that a mask with a hole, where a nearer
    object stands in front, is cut in two along a column through the hole.
    """
    # A contour runs through pixel centres. On the mask at twice its size, the contour encloses the
    # centres of the mask's own pixels, a quarter of a pixel inside their edges.
    double = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for contour, (_, _, _, parent) in zip(contours, hierarchy[0], strict=True):
        if parent != -1:
            columns = np.arange(mask.shape[1])
            left = columns <= contour[:, 0, 0].mean() // 2
            return polygons(mask & left) + polygons(mask & ~left)
    return [((contour.reshape(-1) + 0.5) / 2).tolist() for contour in contours]


def _instances(scene: Scene) -> list[Json]:
    """Make COCO's instance records of a scene, without ids."""
    return [
        {
            "segmentation": polygons(thing.visible_mask),
            "area": int(thing.visible_mask.sum()),
            "iscrowd": 0,
            "bbox": list(thing.visible_box),
            "category_id": _ID_OF_NAME[thing.category],
        }
        for thing in scene.objects
    ]


def _panoptic(scene: Scene) -> tuple[np.ndarray, list[Json]]:
    """Make COCO's panoptic PNG, RGB ``[H, W, 3]``, id = R + 256 G + 256² B, and its segments."""
    masks = [(thing.category, thing.visible_mask) for thing in scene.objects]
    stuff = [(name, scene.semantic == CLASSES.index(name)) for name in STUFF]
    masks += [(name, mask) for name, mask in stuff if mask.any()]
    ids = np.zeros(scene.semantic.shape, np.int64)
    segments = []
    for number, (name, mask) in enumerate(masks, start=1):
        # An odd factor keeps the ids distinct; a large one keeps the colours distinct to the eye.
        segment_id = number * 0x9E3779B1 % 256**3
        ids[mask] = segment_id
        segments.append(
            {
                "id": segment_id,
                "category_id": _ID_OF_NAME[name],
                "iscrowd": 0,
                "bbox": list(box_of(mask)),
                "area": int(mask.sum()),
            }
        )
    return np.stack([ids >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8), segments


def _save_json(path: Path, content: Json) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
