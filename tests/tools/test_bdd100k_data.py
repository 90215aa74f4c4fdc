"""BDD100K: the drawn layout read back, its converter, and what the converter says to bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ROOT, run
from dataset_converters import bdd100k as converter
from make_demo_data import main as draw
from PIL import Image
from pycocotools.coco import COCO

Json = dict[str, Any]

SPLITS = {"train": 7, "val": 4}
CONVERTER = "tools/dataset_converters/bdd100k.py"
CLASSES = ("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
CLASSES += ("traffic light", "traffic sign")
# What a drawn class stands for: Cityscapes' train id, and the name of a thing in det_20.
STANDS_FOR: dict[str, tuple[int, str]] = {
    "floor-wood": (0, ""),
    "wall-brick": (2, ""),
    "wall-tile": (3, ""),
    "teddy bear": (11, "pedestrian"),
    "bottle": (12, "rider"),
    "cup": (13, "car"),
    "book": (15, "bus"),
    "sports ball": (17, "motorcycle"),
    "clock": (18, "bicycle"),
}


def _draw(root: Path, layout: str) -> Path:
    counts = [word for split, n in SPLITS.items() for word in (f"--{split}", str(n))]
    draw(["--layout", layout, "--out", str(root), *counts, "--size", "200", "150"])
    return root


@pytest.fixture(scope="module")
def bdd100k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _draw(tmp_path_factory.mktemp("demo") / "bdd100k", "bdd100k")


@pytest.fixture(scope="module")
def same_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes of ``bdd100k`` in COCO's layout, which is tested by itself."""
    return _draw(tmp_path_factory.mktemp("demo") / "coco", "coco")


@pytest.fixture(scope="module")
def derived(bdd100k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("derived") / "new"
    run(CONVERTER, str(bdd100k), "--out", str(out), coco=bdd100k)
    return out


def _array(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


# --- the drawn layout ---------------------------------------------------------------------------


def test_the_tasks_have_labels_on_different_images(bdd100k: Path) -> None:
    expected = {"demo.json"}
    for split, count in SPLITS.items():
        even, odd = (
            [f"{split}-{number:06d}" for number in range(start, count, 2)] for start in (0, 1)
        )
        expected |= {f"images/100k/{split}/{stem}.jpg" for stem in even}
        expected |= {f"images/10k/{split}/{stem}.jpg" for stem in odd}
        expected |= {f"labels/sem_seg/masks/{split}/{stem}.png" for stem in odd}
        expected.add(f"labels/det_20/det_{split}.json")
        frames = json.loads((bdd100k / f"labels/det_20/det_{split}.json").read_text())
        assert [frame["name"] for frame in frames] == [f"{stem}.jpg" for stem in even]
    files = (path for path in bdd100k.rglob("*") if path.is_file())
    assert {path.relative_to(bdd100k).as_posix() for path in files} == expected


@pytest.mark.parametrize("split, count", SPLITS.items())
def test_images_and_masks_are_those_of_the_scenes(
    bdd100k: Path, same_scenes: Path, split: str, count: int
) -> None:
    categories = json.loads((same_scenes / f"annotations/panoptic_{split}2017.json").read_text())[
        "categories"
    ]
    names = {category["id"] - 1: category["name"] for category in categories}
    for number in range(count):
        part, stem, other = ("100k", "10k")[number % 2], f"{split}-{number:06d}", number + 1
        image = bdd100k / f"images/{part}/{split}/{stem}.jpg"
        twin = same_scenes / f"{split}2017/{other:012d}.jpg"
        assert image.read_bytes() == twin.read_bytes()
        if part == "10k":
            mask = _array(bdd100k / f"labels/sem_seg/masks/{split}/{stem}.png")
            stuff = _array(same_scenes / f"stuffthingmaps/{split}2017/{other:012d}.png")
            assert mask.dtype == np.uint8
            for value in np.unique(stuff):
                assert set(mask[stuff == value]) == {STANDS_FOR[names[value]][0]}


@pytest.mark.parametrize("split", SPLITS)
def test_labels_have_official_names_and_attributes_of_the_scene(bdd100k: Path, split: str) -> None:
    frames = json.loads((bdd100k / f"labels/det_20/det_{split}.json").read_text())
    labels = [label for frame in frames for label in frame["labels"]]
    for label in labels:
        assert label["category"] in CLASSES
        x1, y1, x2, y2 = (label["box2d"][corner] for corner in ("x1", "y1", "x2", "y2"))
        assert 0 <= x1 < x2 <= 199 and 0 <= y1 < y2 <= 149
        if x1 == 0 or y1 == 0 or x2 == 199 or y2 == 149:
            assert label["attributes"]["truncated"]
    assert {label["attributes"]["occluded"] for label in labels} == {True, False}


# --- converted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("split, count", SPLITS.items())
def test_boxes_come_back_exactly(derived: Path, same_scenes: Path, split: str, count: int) -> None:
    found = COCO(str(derived / f"det_{split}.json"))
    drawn = COCO(str(same_scenes / f"annotations/instances_{split}2017.json"))
    assert {c["name"]: c["id"] for c in found.cats.values()} == {
        name: number for number, name in enumerate(CLASSES, start=1)
    }
    numbers = range(0, count, 2)
    assert list(found.imgs) == list(range(1, len(numbers) + 1))
    for image, number in zip(found.imgs.values(), numbers, strict=True):
        assert image["file_name"] == f"{split}-{number:06d}.jpg"
        assert (image["width"], image["height"]) == (200, 150)
        records = found.imgToAnns[image["id"]]
        expected = drawn.imgToAnns[number + 1]
        assert [record["bbox"] for record in records] == [e["bbox"] for e in expected]
        assert [found.cats[record["category_id"]]["name"] for record in records] == [
            STANDS_FOR[drawn.cats[e["category_id"]]["name"]][1] for e in expected
        ]
        for record in records:
            assert record["area"] == record["bbox"][2] * record["bbox"][3]
            assert record["iscrowd"] == 0


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("part, folder", [("det", "100k"), ("sem_seg", "10k")])
def test_mmdet_loads_every_image(
    bdd100k: Path, derived: Path, part: str, folder: str, split: str
) -> None:
    from mmdet.datasets import CocoDataset

    dataset = CocoDataset(
        ann_file=str(derived / f"{part}_{split}.json"),
        data_prefix={"img": str(bdd100k / f"images/{folder}/{split}")},
        metainfo={"classes": CLASSES},
    )
    images = sorted((bdd100k / f"images/{folder}/{split}").iterdir())
    assert [record["img_path"] for record in dataset] == [str(image) for image in images]
    assert all(bool(record["instances"]) == (part == "det") for record in dataset)


# --- input by hand ------------------------------------------------------------------------------


def _label(category: str = "car", *corners: object, **more: object) -> Json:
    x1, y1, x2, y2 = corners or (2, 3, 11, 7)
    return {"category": category, "box2d": {"x1": x1, "y1": y1, "x2": x2, "y2": y2}, **more}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images of 40 × 30 for each task and split; a.jpg and b.jpg of them have labels."""
    root = tmp_path / "bdd100k"
    for split in SPLITS:
        for path in ("images/100k", "images/10k", "labels/sem_seg/masks"):
            (root / path / split).mkdir(parents=True)
        for name in "abc":
            Image.new("RGB", (40, 30)).save(root / f"images/100k/{split}/{name}.jpg")
            Image.new("RGB", (40, 30)).save(root / f"images/10k/{split}/{name}.jpg")
        for name in "ab":
            Image.new("L", (40, 30)).save(root / f"labels/sem_seg/masks/{split}/{name}.png")
        # File managers leave such things behind.
        (root / f"labels/sem_seg/masks/{split}/.DS_Store").touch()
        _write_frames(root, _label(), split=split)
    return root


def _write_frames(root: Path, *labels: Json, split: str = "train") -> None:
    frames = [{"name": "b.jpg", "labels": [_label()]}, {"name": "a.jpg", "labels": labels}]
    _write(root, json.dumps(frames), split)


def _write(root: Path, content: str, split: str = "train") -> None:
    path = root / f"labels/det_20/det_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def _convert(root: Path) -> dict[str, Json]:
    out = root.parent / "derived"
    converter.main([str(root), "--out", str(out)])
    return {path.name: json.loads(path.read_text()) for path in sorted(out.iterdir())}


def test_corners_belong_to_the_box_and_images_are_numbered_by_name(root: Path) -> None:
    _write_frames(root, _label("bus", 0, 0.5, 39, 29.5))
    train = _convert(root)["det_train.json"]
    assert [(i["id"], i["file_name"]) for i in train["images"]] == [(1, "a.jpg"), (2, "b.jpg")]
    first, second = train["annotations"]
    assert (first["image_id"], first["category_id"], first["bbox"]) == (1, 5, [0, 0.5, 40, 30])
    assert (second["image_id"], second["category_id"], second["bbox"]) == (2, 3, [2, 3, 10, 5])


def test_sizes_are_those_of_each_image(root: Path) -> None:
    Image.new("RGB", (64, 48)).save(root / "images/100k/train/a.jpg")
    for path in ("images/10k/train/b.jpg", "labels/sem_seg/masks/train/b.png"):
        Image.new("L", (20, 50)).save(root / path)
    files = _convert(root)
    det, seg = (
        [(image["width"], image["height"]) for image in files[f"{part}_train.json"]["images"]]
        for part in ("det", "sem_seg")
    )
    assert det == [(64, 48), (40, 30)]
    assert seg == [(40, 30), (20, 50)]


@pytest.mark.parametrize(
    ("label", "category", "crowd"),
    [
        (_label("person"), "pedestrian", 0),
        (_label("bike"), "bicycle", 0),
        (_label("motor"), "motorcycle", 0),
        (_label("caravan"), "car", 0),
        (_label("van"), "car", 0),
        (_label("other person"), "pedestrian", 1),
        (_label("other vehicle"), "car", 1),
        (_label("trailer"), "truck", 1),
        (_label("pedestrian", attributes={"crowd": True}), "pedestrian", 1),
        (_label("pedestrian", attributes={"crowd": False}), "pedestrian", 0),
        (_label("pedestrian", attributes={"ignored": True}), "pedestrian", 1),
        (_label("pedestrian", attributes=None), "pedestrian", 0),
    ],
    ids=str,
)
def test_names_of_other_releases_and_what_is_ignored(
    root: Path, label: Json, category: str, crowd: int
) -> None:
    _write_frames(root, label)
    first, _ = _convert(root)["det_train.json"]["annotations"]
    assert (CLASSES[first["category_id"] - 1], first["iscrowd"]) == (category, crowd)


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (_label("lane"), "category 'lane' is none of detection"),
        ({"box2d": _label()["box2d"]}, "category 'None' is none of detection"),
        (_label("car", 5, 5, 5, 5), "box without area"),
        (_label("car", 5, 5, 5, 9), "box without area"),
        (_label("car", 5, 5, 9, 5), "box without area"),
        (_label("car", 9, 5, 5, 9), "box without area"),
        (_label("car", 5, 9, 9, 5), "box without area"),
        (_label("car", float("nan"), 5, 9, 9), "box without area"),
        (_label("car", 5, 5, float("inf"), 9), "box without area"),
        (_label("car", "1", 5, 9, 9), "no 'box2d' with the numbers"),
        ({"category": "car"}, "no 'box2d' with the numbers"),
        ({"category": "car", "box2d": None}, "no 'box2d' with the numbers"),
        ({"category": "car", "box2d": {"x1": 1}}, "no 'box2d' with the numbers"),
    ],
    ids=str,
)
def test_a_malformed_label_is_left_out_and_told(
    root: Path, capsys: pytest.CaptureFixture[str], label: Json, reason: str
) -> None:
    _write_frames(root, label, _label("rider"), label)
    train = _convert(root)["det_train.json"]
    assert [CLASSES[a["category_id"] - 1] for a in train["annotations"]] == ["rider", "car"]
    lines = capsys.readouterr().out.splitlines()
    (number,) = (n for n, line in enumerate(lines) if "labels left out" in line)
    assert reason in lines[number] and lines[number].endswith(": 2 (a.jpg)")
    assert "det_train.json: 2 images, 2 boxes" in lines[number - 1]


@pytest.mark.parametrize("more", [{}, {"labels": None}, {"labels": []}], ids=str)
def test_a_frame_without_labels_is_an_image_without_boxes(
    root: Path, capsys: pytest.CaptureFixture[str], more: Json
) -> None:
    _write(root, json.dumps([{"name": "c.jpg", **more}, {"name": "a.jpg", "labels": [_label()]}]))
    train = _convert(root)["det_train.json"]
    assert [image["file_name"] for image in train["images"]] == ["a.jpg", "c.jpg"]
    assert [annotation["image_id"] for annotation in train["annotations"]] == [1]
    assert "images without boxes: 1 (c.jpg)" in capsys.readouterr().out


def test_images_without_labels_are_left_out_and_told(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "defg":
        Image.new("RGB", (40, 30)).save(root / f"images/10k/val/{name}.jpg")
    files = _convert(root)
    for content in files.values():
        assert [image["file_name"] for image in content["images"]] == ["a.jpg", "b.jpg"]
    assert files["sem_seg_val.json"]["annotations"] == []
    told = capsys.readouterr().out
    assert f"images of {root}/images/100k/train left out, without labels: 1 (c.jpg)" in told
    assert f"{root}/images/10k/val left out, without labels: 5 (c.jpg, d.jpg, e.jpg, ...)" in told


def _no_frames(root: Path) -> None:
    (root / "labels/det_20/det_val.json").unlink()


def _no_masks_of_a_split(root: Path) -> None:
    for path in (root / "labels/sem_seg/masks/val").iterdir():
        path.unlink()
    path.parent.rmdir()


def _missing_images(root: Path) -> None:
    for name in "ab":
        (root / f"images/100k/val/{name}.jpg").unlink()


def _mask_without_image(root: Path) -> None:
    (root / "images/10k/val/b.jpg").unlink()


def _broken_image(root: Path) -> None:
    (root / "images/100k/val/b.jpg").write_bytes(b"no image")


def _mask_of_another_size(root: Path) -> None:
    Image.new("L", (30, 40)).save(root / "labels/sem_seg/masks/val/b.png")


def _mask_of_colours(root: Path) -> None:
    Image.new("RGB", (40, 30)).save(root / "labels/sem_seg/masks/val/b.png")


def _mask_of_other_values(root: Path) -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[0, :3] = 18, 255, 19
    Image.fromarray(mask).save(root / "labels/sem_seg/masks/val/b.png")


def _labels_of_2018(root: Path) -> None:
    _write_frames(root, _label("person"), _label("lane"), _label("drivable area"), split="val")


def _labels_of_2018_alone(root: Path) -> None:
    shutil.rmtree(root / "labels")
    (root / "labels").mkdir()
    (root / "labels/bdd100k_labels_images_train.json").write_text("[]")


MALFORMED: list[tuple[Callable[[Path], object], str]] = [
    (_no_frames, "{root}/labels/det_20/det_val.json: cannot be read: No such file"),
    (lambda root: _write(root, "[{", "val"), "{root}/labels/det_20/det_val.json: is not JSON"),
    (lambda root: _write(root, "{}", "val"), "det_val.json: must be a list of frames, is a dict"),
    (
        lambda root: _write(root, '[{"name": "a.jpg"}, {"labels": []}]', "val"),
        "det_val.json: frame 1 (from 0) has no 'name'",
    ),
    (lambda root: _write(root, "[5]", "val"), "det_val.json: frame 0 (from 0) has no 'name'"),
    (
        lambda root: _write(root, '[{"name": "a.jpg", "labels": 7}]', "val"),
        "det_val.json: 'labels' of a.jpg must be a list, is 7",
    ),
    (
        lambda root: _write(root, '[{"name": "a.jpg"}, {"name": "a.jpg"}]', "val"),
        "det_val.json: two frames are named a.jpg",
    ),
    (
        _missing_images,
        "{root}/labels/det_20/det_val.json: names images that are not in {root}/images/100k/val: "
        "2 (a.jpg, b.jpg)",
    ),
    (_broken_image, "{root}/images/100k/val/b.jpg: is not a readable image"),
    (_no_masks_of_a_split, "{root}/labels/sem_seg/masks/val: no such folder"),
    (
        _mask_without_image,
        "{root}/labels/sem_seg/masks/val: masks without an image in {root}/images/10k/val: "
        "1 (b.png)",
    ),
    (
        _mask_of_another_size,
        "{root}/labels/sem_seg/masks/val: masks of another size than their images in "
        "{root}/images/10k/val: 1 (b.png (30 x 40, the image 40 x 30))",
    ),
    (
        _mask_of_colours,
        "{root}/labels/sem_seg/masks/val: masks with other values than 0 to 18 and 255, which are "
        'those of "Semantic Segmentation" in labels/sem_seg/masks: 1 (b.png (of the mode RGB,',
    ),
    (_mask_of_other_values, "labels/sem_seg/masks: 1 (b.png (it has 19))"),
    (
        _labels_of_2018,
        '{root}/labels/det_20/det_val.json is of the labels of 2018; needed are "Detection 2020',
    ),
    (
        _labels_of_2018_alone,
        '{root}/labels/bdd100k_labels_images_train.json is of the labels of 2018; needed are "Det',
    ),
]


@pytest.mark.parametrize("damage, message", MALFORMED, ids=[m for _, m in MALFORMED])
def test_one_error_names_the_file_before_anything_is_written(
    root: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(root)
    with pytest.raises(SystemExit) as stopped:
        _convert(root)
    assert message.format(root=root) in str(stopped.value)
    assert not (root.parent / "derived").exists()


def test_frames_in_an_object_and_suffixes_in_capitals(root: Path) -> None:
    before = _convert(root)
    frames = json.loads((root / "labels/det_20/det_train.json").read_text())
    _write(root, json.dumps({"frames": frames, "config": {}}))
    for folder in ("images/100k/train", "images/10k/train"):
        (root / folder / "a.jpg").rename(root / folder / "a.JPG")
    (root / "labels/sem_seg/masks/train/a.png").rename(root / "labels/sem_seg/masks/train/a.PNG")
    after = _convert(root)
    for name, content in before.items():
        if "train" in name:
            content["images"][0]["file_name"] = "a.JPG"
        assert after[name] == content


def test_the_validation_split_alone(root: Path) -> None:
    both = _convert(root)
    for path in ("images/100k/train", "images/10k/train", "labels/sem_seg/masks/train"):
        shutil.rmtree(root / path)
    (root / "labels/det_20/det_train.json").unlink()
    out = root.parent / "alone"
    converter.main([str(root), "--out", str(out), "--splits", "val"])
    found = {path.name: json.loads(path.read_text()) for path in sorted(out.iterdir())}
    assert found == {name: both[name] for name in ("det_val.json", "sem_seg_val.json")}


def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    out = tmp_path / "derived"
    command = [sys.executable, CONVERTER, str(tmp_path / "nowhere"), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{tmp_path / 'nowhere'}: no such folder")
    assert done.stderr.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("there", "missing"),
    [("det", "labels/sem_seg/masks"), ("sem_seg", "labels/det_20")],
)
def test_the_labels_of_one_task_may_be_missing(
    root: Path, capsys: pytest.CaptureFixture[str], there: str, missing: str
) -> None:
    (root / missing).rename(root / "elsewhere")
    assert list(_convert(root)) == [f"{there}_train.json", f"{there}_val.json"]
    assert f"{root / missing}: no such folder; converting the other" in capsys.readouterr().out


def test_without_any_labels_both_places_are_named(root: Path) -> None:
    (root / "labels").rename(root / "annotations")
    with pytest.raises(SystemExit) as stopped:
        _convert(root)
    for folder in ("labels/det_20", "labels/sem_seg/masks"):
        assert str(root / folder) in str(stopped.value)


def test_the_same_labels_in_another_order_give_the_same_files(root: Path, bdd100k: Path) -> None:
    converter.main([str(bdd100k), "--out", str(root / "one")])
    for split in SPLITS:
        file = bdd100k / f"labels/det_20/det_{split}.json"
        original = file.read_text()
        file.write_text(json.dumps(json.loads(original)[::-1]))
        try:
            converter.main([str(bdd100k), "--out", str(root / "two")])
        finally:
            file.write_text(original)
        for path in (root / "one").iterdir():
            assert (root / "two" / path.name).read_bytes() == path.read_bytes()


def test_a_stopped_run_leaves_the_earlier_files(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _convert(root)
    _write_frames(root, _label("bus"))
    write = Path.write_text

    def stop(path: Path, content: str, **options: str) -> None:
        write(path, content[:10], **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", stop)
        with pytest.raises(KeyboardInterrupt):
            _convert(root)
    names = sorted(path.name for path in (root.parent / "derived").iterdir())
    assert names == sorted(before)
    for name, content in before.items():
        assert json.loads((root.parent / "derived" / name).read_text()) == content
    assert _convert(root) != before


def test_an_output_that_is_a_file_is_named(root: Path) -> None:
    (root.parent / "derived").touch()
    with pytest.raises(SystemExit, match=r"--out .*derived: cannot write there"):
        _convert(root)
