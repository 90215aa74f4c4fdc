"""Draw BDD100K's layout with teachers that are right, or label an image as if it were another."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from dataset_converters.bdd100k import main as convert  # noqa: E402
from make_demo_data import main as draw  # noqa: E402

from demo_scenes.bdd100k import write_bdd100k  # noqa: E402  isort: skip
from demo_scenes.scene import draw_scene  # noqa: E402  isort: skip
from demo_scenes.things import OBJECTS  # noqa: E402  isort: skip

SOURCES = ("det_train", "sem_seg_train")
MASKS = "labels/sem_seg/masks/train"
WIDTH, HEIGHT = 160, 120


def draw_scenes(folder: Path, train: int, val: int) -> None:
    """Draw scenes, and the labels that BDD100K lacks: maps of some and boxes of the others."""
    size = ["--train", str(train), "--val", str(val), "--size", str(WIDTH), str(HEIGHT)]
    draw(["--layout", "bdd100k", "--out", str(folder / "scenes"), *size])
    seeds = ([0, 0, number] for number in range(train))  # as the training scenes are drawn
    kinds = tuple(OBJECTS)
    scenes = [draw_scene(np.random.default_rng(s), (HEIGHT, WIDTH), kinds) for s in seeds]
    # Even numbers have boxes and odd ones maps, so that a number more gives a scene the other.
    write_bdd100k(folder / "others", "train", [scenes[0], *scenes])
    for place in ("scenes", "others"):
        splits = ["train", "val"] if place == "scenes" else ["train"]
        out = str(folder / f"{place}_derived")
        convert([str(folder / place), "--out", out, "--splits", *splits])


def teach(folder: Path, wrong: float) -> None:
    """Write pseudo labels for all drawn images, and tell the configs where the data are.

    Args:
        folder: Folder of :func:`draw_scenes`.
        wrong: Share of the images that get the labels of the next image.
    """
    derived = folder / f"derived_{wrong:g}"
    os.environ["BDD100K_ROOT"] = str(folder / "scenes")
    os.environ["BDD100K_DERIVED"] = str(derived)
    shutil.rmtree(derived, ignore_errors=True)
    shutil.copytree(folder / "scenes_derived", derived)
    boxes: dict[int, list[dict[str, Any]]] = {}
    maps: dict[int, Path] = {}
    for place, ahead in (("scenes", 0), ("others", 1)):
        coco = json.loads((folder / f"{place}_derived/det_train.json").read_text())
        numbers = {image["id"]: _number(image["file_name"]) - ahead for image in coco["images"]}
        boxes |= {number: [] for number in numbers.values()}
        for box in coco["annotations"]:
            boxes[numbers[box["image_id"]]].append(box)
        maps |= {_number(path.name) - ahead: path for path in (folder / place / MASKS).iterdir()}
    for source in SOURCES:
        coco = json.loads((derived / f"{source}.json").read_text())
        images, found = coco["images"], []
        (derived / "pseudo" / source).mkdir(parents=True)
        for place, image in enumerate(images):
            is_wrong = int((place + 1) * wrong) > int(place * wrong)
            label = _number(images[(place + is_wrong) % len(images)]["file_name"])
            found += [box | {"image_id": image["id"]} for box in boxes[label]]
            target = (derived / "pseudo" / source / image["file_name"]).with_suffix(".png")
            shutil.copy(maps[label], target)
        numbered = [box | {"id": number} for number, box in enumerate(found, 1)]
        path = derived / "pseudo" / f"{source}.json"
        path.write_text(json.dumps(coco | {"annotations": numbered}))


def _number(name: str) -> int:
    return int(Path(name).stem.rpartition("-")[2])
