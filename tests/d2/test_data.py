"""Classes of data sets and models that do not fit are one error before the first step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image
from small import config

from mtl_plugins.d2 import MTLTrainer
from mtl_plugins.d2.data import class_problem

FRUIT = ("apple", "fig", "kiwi")


@pytest.fixture
def register(tmp_path: Path):
    """Registers a data set with an object of each of some categories."""
    made = []

    def add(name: str, categories: tuple[str, ...], **metadata: Any) -> str:
        ids = range(1, len(categories) + 1)
        size = {"width": 64, "height": 48}
        polygon = [[4, 4, 24, 4, 24, 20, 4, 20]]
        box = {"bbox": [4, 4, 20, 16], "area": 320, "iscrowd": 0, "segmentation": polygon}
        content = {
            "images": [{"id": 1, "file_name": "1.jpg", **size}],
            "annotations": [{"id": i, "image_id": 1, "category_id": i, **box} for i in ids],
            "categories": [
                {"id": i, "name": name} for i, name in zip(ids, categories, strict=True)
            ],
        }
        Image.new("RGB", (64, 48)).save(tmp_path / "1.jpg")
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        register_coco_instances(name, metadata, str(tmp_path / f"{name}.json"), str(tmp_path))
        made.append(name)
        return name

    yield add
    for name in made:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def trainer(tmp_path: Path, train: str, test: str | None = None, *options: Any) -> MTLTrainer:
    cfg = config("DATASETS.TRAIN", (train,), "DATASETS.TEST", (test,) if test else ())
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", 0, *options])
    return MTLTrainer(cfg)


def test_another_number_of_classes(register, tmp_path: Path) -> None:
    name = register("basket_train", FRUIT)
    for number in (2, 80):
        with pytest.raises(ValueError) as raised:
            trainer(tmp_path, name, None, "MODEL.ROI_HEADS.NUM_CLASSES", number)
        message = str(raised.value)
        assert message.startswith(f"MODEL.ROI_HEADS.NUM_CLASSES is {number}, but 'basket_train'")
        assert "has 3 classes (thing_classes): apple, fig, kiwi" in message
    retina = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", 5]
    cfg = config("DATASETS.TRAIN", (name,), "DATASETS.TEST", (), *retina)
    assert class_problem(cfg).startswith("MODEL.RETINANET.NUM_CLASSES is 5, but 'basket_train'")
    assert trainer(tmp_path, name).data_loader.start == 0


def test_classes_of_the_metadata_that_the_file_does_not_have(register, tmp_path: Path) -> None:
    name = register("fruit_typo", FRUIT, thing_classes=["apple", "figs", "kiwi"])
    with pytest.raises(ValueError, match=r"^DATASETS\.TRAIN: .*'fruit_typo'") as raised:
        trainer(tmp_path, name)
    assert "['apple', 'figs', 'kiwi']" in str(raised.value)
    assert "['apple', 'fig', 'kiwi']" in str(raised.value)
    good = register("basket_train", FRUIT)
    with pytest.raises(ValueError, match=r"^DATASETS\.TEST: .*'fruit_typo'"):
        trainer(tmp_path, good, name)


def test_other_classes_in_the_test(register, tmp_path: Path) -> None:
    train, test = register("basket_train", FRUIT), register("basket_val", FRUIT[::-1])
    with pytest.raises(ValueError) as raised:
        trainer(tmp_path, train, test)
    assert str(raised.value).startswith(
        "DATASETS.TEST: 'basket_val' has other classes (thing_classes) than 'basket_train': "
        "kiwi, fig, apple; there apple, fig, kiwi"
    )


def test_numbers_of_objects_whose_classes_have_no_names() -> None:
    cfg = config("DATASETS.TRAIN", ("nameless",), "DATASETS.TEST", ())
    found = [{"annotations": [{"category_id": 0}, {"category_id": 3}]}]
    assert "objects with the category_id 3; category_ids go from 0 to 2" in class_problem(
        cfg, found
    )
    found[0]["annotations"].pop()
    assert class_problem(cfg, found) is None
