"""Data that does not fit its config is one error before the first step, in the config's words."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmseg.models.decode_heads import FCNHead
from PIL import Image
from torch import nn
from toy import TASKS, make_runner

import mtl_plugins.mm.datasets
import mtl_plugins.mm.models
import mtl_plugins.mm.transforms  # noqa: F401
from mtl_plugins.mm.data_check import (
    broken_annotations,
    check_runner,
    class_count_problem,
    data_problem,
)

Json = dict[str, Any]
FRUIT = ("apple", "fig", "kiwi")
WIDTH, HEIGHT = 64, 48

pytestmark = pytest.mark.usefixtures("mmdet_scope")


def fruit() -> Json:
    """Three images, with an apple, a fig and a kiwi."""
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in (1, 2, 3)
        ],
        "annotations": [
            {
                "id": 10 + i,
                "image_id": i,
                "category_id": i,
                "bbox": [4, 4, 20, 16],
                "area": 320,
                "iscrowd": 0,
                "segmentation": [[4, 4, 24, 4, 24, 20, 4, 20]],
            }
            for i in (1, 2, 3)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(FRUIT, start=1)],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i in (1, 2, 3):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"images/{i}.jpg")
    write(tmp_path, fruit())
    return tmp_path


def write(root: Path, content: Json) -> None:
    (root / "train.json").write_text(json.dumps(content))


def config(root: Path, **options: Any) -> Json:
    """A config of a training set with masks; to be changed by ``options``."""
    dataset = {
        "type": "CocoDataset",
        "data_root": str(root),
        "ann_file": "train.json",
        "data_prefix": {"img": "images"},
        "metainfo": {"classes": FRUIT},
        "filter_cfg": {"filter_empty_gt": True},
        "pipeline": [
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
            {"type": "PackDetInputs"},
        ],
    }
    return {"train_dataloader": {"dataset": {**dataset, **options}}}


# --- class names --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["CocoDataset", "PartialDataset"])
def test_a_class_that_the_file_does_not_have(root: Path, kind: str) -> None:
    wrong = config(root, type=kind, metainfo={"classes": ("apple", "figs", "kiwi")})
    loaded = DATASETS.build(wrong["train_dataloader"]["dataset"])
    # MMDetection trains kiwis as the second class, and no fig.
    assert sorted(one["bbox_label"] for image in loaded for one in _instances(loaded, image)) == [
        0,
        1,
    ]
    message = data_problem(wrong)
    assert message.startswith("train_dataloader.dataset.metainfo.classes: 'figs' is no category")
    assert "did you mean 'fig'?" in message
    assert "'apple', 'figs', 'kiwi'" in message and "'apple', 'fig', 'kiwi'" in message
    assert str(root / "train.json") in message
    assert data_problem(config(root, type=kind)) is None


def _instances(dataset: Any, image: Json) -> list[Json]:
    number = int(image["data_samples"].img_id)
    return next(
        info["instances"]
        for info in map(dataset.get_data_info, range(len(dataset)))
        if info["img_id"] == number
    )


def test_classes_of_the_data_set_s_own(root: Path) -> None:
    """Without ``metainfo``, ``CocoDataset`` looks for COCO's eighty."""
    message = data_problem(config(root, metainfo=None))
    assert "'person', 'bicycle'" in message and "'apple', 'fig', 'kiwi'" in message


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("Apple", "Fig", "Kiwi"), "'Apple', 'Fig', 'Kiwi' is no category"),
        (("kiwi", "fig", "apple"), "in the order of the file's categories"),
        ("apple", r"'apple' is a word, .* classes=\('apple',\)"),
    ],
)
def test_case_order_and_comma(root: Path, classes: Any, words: str) -> None:
    message = data_problem(config(root, metainfo={"classes": classes}))
    assert re.search(rf"^train_dataloader\.dataset\.metainfo\.classes: .*{words}", message)


def test_some_of_the_file_s_classes_are_right(root: Path) -> None:
    assert data_problem(config(root, metainfo={"classes": ("apple", "kiwi")})) is None


def test_wrapped_data_sets_are_looked_into(root: Path) -> None:
    inner = config(root, metainfo={"classes": ("plum",)})["train_dataloader"]["dataset"]
    joined = {"type": "ConcatDataset", "datasets": [{"type": "RepeatDataset", "dataset": inner}]}
    message = data_problem({"train_dataloader": {"dataset": joined}})
    assert message.startswith("train_dataloader.dataset.datasets[0].dataset.metainfo.classes: ")


# --- annotations and images ---------------------------------------------------------------------


def _set(key: str, value: Any, part: str = "annotations") -> Callable[[Json], None]:
    def edit(content: Json) -> None:
        content[part][1][key] = value

    return edit


def _small(root: Path) -> None:
    Image.new("RGB", (WIDTH // 2, HEIGHT)).save(root / "images/1.jpg")


def _turned(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images/1.jpg", exif=exif)


BROKEN: dict[str, tuple[Callable[[Json], Any] | None, Callable[[Path], Any] | None, str]] = {
    "empty": (_set("segmentation", []), None, r"id 12, of the image '2.jpg', has the segm.* \[\]"),
    "null": (_set("segmentation", None), None, "id 12, of the image '2.jpg', .* None, but masks"),
    "flat": (_set("segmentation", [4, 4, 24, 4, 9, 9]), None, "id 12.* a list of numbers"),
    "RLE of another size": (
        _set("segmentation", {"size": [WIDTH, HEIGHT], "counts": [0, WIDTH * HEIGHT]}),
        None,
        r"id 12.* an RLE of the size \[64, 48\]; its image has \[48, 64\]",
    ),
    "RLE of fewer pixels": (
        _set("segmentation", {"size": [HEIGHT, WIDTH], "counts": [9, 9]}),
        None,
        "id 12.* an RLE of 18 pixels; its image has 3072",
    ),
    "three numbers": (_set("bbox", [4, 4, 20]), None, r"the id 12 has the bbox \[4, 4, 20\]"),
    "words": (_set("bbox", ["4", 4, 2, 2]), None, "the id 12 has the bbox"),
    "nan": (_set("bbox", [4, float("nan"), 2, 2]), None, "the id 12 has the bbox"),
    "image twice": (_set("id", 1, "images"), None, "2 records of images have the id 1"),
    "class twice": (_set("id", 1, "categories"), None, "2 records of categories have the id 1"),
    "object twice": (_set("id", 11), None, "2 records of annotations have the id 11"),
    "small image": (None, _small, r"1\.jpg' \(id 1\) has 32 x 48, .*train.json' says 64 x 48"),
    "turned image": (None, _turned, r"1\.jpg' \(id 1\) has 48 x 64, .* EXIF orientation 6"),
    "no image": (
        None,
        lambda root: (root / "images/1.jpg").unlink(),
        r"data_prefix.img: the image .*1\.jpg' \(id 1\), which .*train.json' lists, is not there",
    ),
    "cut image": (
        None,
        lambda root: (root / "images/1.jpg").write_bytes(b"no image"),
        r"data_prefix.img: the image .*1\.jpg' \(id 1\) cannot be read",
    ),
    "boxes between 0 and 1": (
        lambda c: [one.update(bbox=[0.1, 0.1, 0.5, 0.5]) for one in c["annotations"]],
        None,
        "none of the 3 annotations .* is an object to train on",
    ),
    "no annotation": (lambda c: c["annotations"].clear(), None, "none of the 0 annotations"),
    "a list": (None, lambda root: (root / "train.json").write_text("[]"), "holds a list"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named(root: Path, case: str) -> None:
    edit, damage, words = BROKEN[case]
    content = fruit()
    if edit:
        edit(content)
        write(root, content)
    if damage:
        damage(root)
    message = data_problem(config(root))
    assert message and message.startswith("train_dataloader.dataset."), message
    assert re.search(words, message), message


def test_what_mmdetection_passes_over_is_no_error(root: Path) -> None:
    content = fruit()
    content["annotations"] += [
        {**content["annotations"][0], "id": 20, "ignore": 1, "bbox": [1]},
        {**content["annotations"][0], "id": 21, "bbox": [1, 1, 0.5, 9], "segmentation": []},
        {**content["annotations"][0], "id": 22, "bbox": [99, 1, 9, 9], "segmentation": []},
        {**content["annotations"][0], "id": 23, "image_id": 77, "bbox": None},
    ]
    write(root, content)
    assert data_problem(config(root)) is None
    dataset = DATASETS.build(config(root)["train_dataloader"]["dataset"])
    assert [len(dataset[i]["data_samples"].gt_instances) for i in range(3)] == [1, 1, 1]


def test_masks_are_asked_for_only_where_they_are_trained(root: Path) -> None:
    content = fruit()
    del content["annotations"][0]["segmentation"]
    write(root, content)
    assert "the segmentation None" in data_problem(config(root))
    boxes = config(root)
    boxes["train_dataloader"]["dataset"]["pipeline"][1]["with_mask"] = False
    assert data_problem(boxes) is None


def test_an_image_that_the_pipeline_does_not_turn_may_be_tagged(root: Path) -> None:
    _turned(root)
    cfg = config(root)
    cfg["train_dataloader"]["dataset"]["pipeline"][0]["color_type"] = "color_ignore_orientation"
    assert data_problem(cfg) is None


def test_an_image_turned_upside_down_is_a_warning(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images/1.jpg", exif=exif)
    with pytest.warns(UserWarning, match=r"1\.jpg.*EXIF orientation 3"):
        assert data_problem(config(root)) is None


@pytest.mark.parametrize("prefix", [{}, None])
def test_no_folder_of_images(root: Path, prefix: Any) -> None:
    message = data_problem(config(root, data_prefix=prefix))
    assert message.startswith("train_dataloader.dataset.data_prefix: has no 'img'")


def test_a_file_that_changes_is_read_again(root: Path) -> None:
    assert data_problem(config(root)) is None
    content = fruit()
    content["annotations"][0]["segmentation"] = []
    write(root, content)
    assert "the id 11" in data_problem(config(root))


def test_other_data_sets_are_left_alone(root: Path) -> None:
    (root / "train.json").write_text("anything")
    assert broken_annotations(config(root, type="VOCDataset")) is None
    assert broken_annotations({"train_dataloader": {"dataset": [1, 2, 3]}}) is None
    assert broken_annotations({"train_dataloader": None}) is None


def test_a_large_file_takes_little_time(root: Path) -> None:
    """Twenty thousand objects; COCO has forty times as many."""
    one, content = fruit()["annotations"][0], fruit()
    image = content["images"][0]
    content["images"] = [{**image, "id": i, "file_name": "1.jpg"} for i in range(3_000)]
    content["annotations"] = [{**one, "id": i, "image_id": i % 3_000} for i in range(20_000)]
    write(root, content)
    start = time.process_time()
    assert data_problem(config(root)) is None
    assert time.process_time() - start < 2


# --- numbers of classes -------------------------------------------------------------------------


def small(kind: str) -> Any:
    """A model of MMDetection, from its config, with a smaller backbone."""
    cfg = get_config(f"mmdet::{kind}.py").model
    cfg.backbone.update(depth=18, init_cfg=None)
    return MODELS.build(cfg)


EIGHTY = {"classes": tuple(f"class {i}" for i in range(80))}
MASK_RCNN = "mask_rcnn/mask-rcnn_r50_fpn_1x_coco"


def test_every_head_that_does_not_fit_is_named() -> None:
    model = small(MASK_RCNN)
    message = class_count_problem(model, {"classes": FRUIT})
    assert message.startswith(
        "model.roi_head.bbox_head.num_classes is 80, model.roi_head.mask_head.num_classes is 80, "
        "but train_dataloader.dataset has 3 classes: apple, fig, kiwi"
    )
    assert class_count_problem(model, EIGHTY) is None
    assert class_count_problem(model, {}) is None
    assert "classes=('apple',)" in class_count_problem(model, {"classes": "apple"})


def test_panoptic_heads_count_things_and_stuff() -> None:
    model = small("panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco")
    things = EIGHTY["classes"]
    stuff = tuple(f"stuff {i}" for i in range(53))
    meta = {"classes": things + stuff, "thing_classes": things, "stuff_classes": stuff}
    assert class_count_problem(model, meta) is None
    meta = {"classes": things + stuff[:50], "thing_classes": things, "stuff_classes": stuff[:50]}
    message = class_count_problem(model, meta)
    assert "semantic_head.num_things_classes + num_stuff_classes is 133" in message
    assert "bbox_head" not in message


def test_the_semantic_head_counts_its_own_classes(configs: Path) -> None:
    cfg = Config.fromfile(configs / "bdd100k/fcos-semfpn_r18-small_bdd100k.py").model
    model = MODELS.build(cfg)
    meta = copy.deepcopy(mtl_plugins.mm.datasets.BDD100KDataset.METAINFO)
    assert class_count_problem(model, meta) is None
    meta["seg_classes"] = meta["seg_classes"][:5]
    message = class_count_problem(model, meta)
    assert message.startswith("model.semantic_head.num_classes is 19, but")
    assert "5 classes: road" in message
    uoais = Config.fromfile(configs / "metagraspnet/uoais_r18-small_fpn_rgbd.py").model
    assert class_count_problem(MODELS.build(uoais), {"classes": ("object",)}) is None


def test_dense_heads_count_the_classes_of_their_tasks() -> None:
    """A decoder has as many "classes" as depth and normals have channels."""

    def head(field: str, channels: int) -> nn.Module:
        options = {"in_channels": 4, "channels": 4, "num_convs": 1}
        decoder = FCNHead(num_classes=channels, out_channels=channels, **options)
        task = nn.Module()
        task.field, task.decoder = field, decoder
        decoder.class_agnostic = field != "sem_seg"
        return task

    heads = {
        "seg": FCNHead(in_channels=4, channels=4, num_classes=21),
        "depth": head("depth", 1),
    }
    heads |= {"normals": head("normals", 3), "parts": head("human_parts", 7)}
    model = nn.Module()
    model.heads = nn.ModuleDict(heads)
    meta = mtl_plugins.mm.datasets.PASCALMTDataset.METAINFO
    assert class_count_problem(model, meta) is None
    model.heads["parts"] = head("human_parts", 6)
    message = class_count_problem(model, meta)
    assert message.startswith("model.heads.parts.decoder.num_classes is 6, but")
    assert "7 classes: background, head, torso" in message
    model.heads["parts"], model.heads["other"] = head("human_parts", 7), head("sem_seg", 20)
    assert "model.heads.other.decoder.num_classes is 20, but" in class_count_problem(model, meta)


@pytest.fixture
def configs() -> Path:
    return Path(__file__).parents[2] / "configs"


# --- a runner -----------------------------------------------------------------------------------


def test_a_runner_is_checked_as_a_whole(root: Path, tmp_path: Path) -> None:
    cfg = get_config(f"mmdet::{MASK_RCNN}.py")
    for option in ("val_dataloader", "val_cfg", "val_evaluator"):
        cfg[option] = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.model.backbone.update(depth=18, init_cfg=None)
    cfg.train_dataloader.dataset = config(root)["train_dataloader"]["dataset"]
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.work_dir = str(tmp_path / "work")
    runner = Runner.from_cfg(cfg)
    assert len(runner.train_dataloader.dataset) == 3
    with pytest.raises(ValueError, match=r"^model\.roi_head\.bbox_head\.num_classes is 80"):
        check_runner(runner)
    runner.model.roi_head.bbox_head.num_classes = 3
    runner.model.roi_head.mask_head.num_classes = 3
    check_runner(runner)
    content = fruit()
    content["annotations"][0]["segmentation"] = []
    write(root, content)
    with pytest.raises(ValueError, match=r"^train_dataloader\.dataset\.ann_file: .* id 11"):
        check_runner(runner)


def test_a_runner_of_other_data_is_let_through(tmp_path: Path) -> None:
    with DefaultScope.overwrite_default_scope("mmengine"):
        runner = make_runner(tmp_path, dict(type="MTLOptimWrapper", tasks=TASKS, aggregator="Sum"))
    assert check_runner(runner) is None


# --- depth --------------------------------------------------------------------------------------


def _depth(root: Path, depth: np.ndarray, name: str = "{}.npz") -> Json:
    content = fruit()
    for image in content["images"]:
        image["depth_file_name"] = name.format(image["id"])
        path = root / "images" / image["depth_file_name"]
        np.save(path, depth) if path.suffix == ".npy" else np.savez(path, depth=depth)
    content["categories"] = [{"id": 1, "name": "object"}]
    for one in content["annotations"]:
        rle = {"size": [HEIGHT, WIDTH], "counts": [0, WIDTH * HEIGHT]}
        one |= {"category_id": 1, "segmentation": rle, "visible_mask": rle, "occluded_rate": 0.0}
    write(root, content)
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadDepth", "depth_range": (50, 250)},
        {"type": "LoadAmodalAnnotations"},
    ]
    return config(root, type="MetaGraspNetDataset", metainfo=None, pipeline=pipeline)


SCENE = np.linspace(60, 200, WIDTH * HEIGHT, dtype=np.float32).reshape(HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("factor", "hint"),
    [
        (10, r"depth_range=\(500.0, 2500.0\)"),
        (0.01, r"depth_range=\(0.5, 2.5\)"),
        (np.nan, "no measured depth"),
    ],
)
def test_depth_in_another_unit(root: Path, factor: float, hint: str) -> None:
    assert data_problem(_depth(root, SCENE)) is None
    cfg = _depth(root, SCENE * np.float32(factor))
    message = data_problem(cfg)
    assert message.startswith("train_dataloader.dataset.pipeline: LoadDepth")
    assert re.search(hint, message), message
    # What it would train on is constant where something was measured.
    dataset = cfg["train_dataloader"]["dataset"]
    image = {
        "img_path": str(root / "images/1.jpg"),
        "depth_path": str(root / "images/1.npz"),
        "img_id": 1,
    }
    with pytest.warns(UserWarning, match=r"1\.npz"):
        loaded = Compose(dataset["pipeline"][:2])(image)
    assert len(np.unique(loaded["img"][..., 3])) == 1


def test_depth_as_npy_is_that_of_the_npz(root: Path) -> None:
    cfg = _depth(root, SCENE, "{}.npy")
    assert data_problem(cfg) is None
    load = Compose(cfg["train_dataloader"]["dataset"]["pipeline"][:2])
    depth = load(
        {"img_path": str(root / "images/1.jpg"), "depth_path": str(root / "images/1.npy")}
    )["img"][..., 3]
    np.testing.assert_allclose(depth, (SCENE - 50) * 255 / 200, rtol=1e-5)


def test_depth_that_is_not_there(root: Path) -> None:
    cfg = _depth(root, SCENE)
    (root / "images/1.npz").unlink()
    message = data_problem(cfg)
    assert message.startswith("train_dataloader.dataset.data_prefix.depth: the depth ")
    assert "1.npz" in message and "the id 1" in message
