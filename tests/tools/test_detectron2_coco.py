"""COCO in Detectron2's place: links that follow the source, and maps that are whole."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_converters import detectron2_coco as converter
from PIL import Image

SIZE = (24, 32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two images a split, each of a thing, stuff, and a corner without a label."""
    root = tmp_path / "coco"
    for split in converter.SPLITS:
        segments = root / f"annotations/panoptic_{split}"
        segments.mkdir(parents=True)
        (root / split).mkdir()
        images = []
        for name in "ab":
            ids = np.zeros((*SIZE, 3), np.uint8)
            ids[4:, :16] = 7, 1, 0  # 263
            ids[:, 16:] = 0, 0, 2  # 131072
            Image.fromarray(ids).save(segments / f"{name}.png")
            Image.new("RGB", SIZE[::-1]).save(root / split / f"{name}.jpg")
            segments_info = [{"id": 263, "category_id": 1}, {"id": 131072, "category_id": 5}]
            images.append({"file_name": f"{name}.png", "segments_info": segments_info})
        categories = [{"id": 1, "isthing": 1}, {"id": 4, "isthing": 0}, {"id": 5, "isthing": 0}]
        content = {"annotations": images, "categories": categories}
        (root / f"annotations/panoptic_{split}.json").write_text(json.dumps(content))
        (root / f"annotations/instances_{split}.json").write_text("{}")
    return root


EXPECTED = np.full(SIZE, converter.UNLABELLED, np.uint8)
EXPECTED[4:, :16] = 0
EXPECTED[:, 16:] = 2


def run(monkeypatch: pytest.MonkeyPatch, source: Path, target: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["detectron2_coco.py", str(source), str(target)])
    converter.main()


def check(target: Path) -> None:
    for split in converter.SPLITS:
        folder = target / f"panoptic_stuff_{split}"
        assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png"]
        for path in folder.iterdir():
            np.testing.assert_array_equal(np.array(Image.open(path)), EXPECTED)
        assert (target / split / "a.jpg").is_file()


def test_a_map_that_was_cut_is_made_again(source: Path, tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "datasets/coco"
    run(monkeypatch, source, target)
    check(target)
    cut, whole = (target / f"panoptic_stuff_train2017/{name}.png" for name in "ab")
    cut.write_bytes(cut.read_bytes()[:60])
    before = whole.stat().st_mtime_ns
    run(monkeypatch, source, target)
    check(target)
    assert whole.stat().st_mtime_ns == before


def test_a_stopped_run_leaves_no_half_a_map(source: Path, tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "datasets/coco"
    save = Image.Image.save

    def stop(image: Image.Image, path: Path, *args: str) -> None:
        save(image, path, *args)
        Path(path).write_bytes(Path(path).read_bytes()[:30])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run(monkeypatch, source, target)
    assert not list(target.glob("panoptic_stuff_train2017/[!.]*"))
    run(monkeypatch, source, target)
    check(target)


def test_one_split_alone(source: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    shutil.rmtree(source / "train2017")
    run(monkeypatch, source, tmp_path / "target")
    assert "train2017 is left out" in capsys.readouterr().out
    assert (tmp_path / "target/val2017/a.jpg").is_file()
    assert not (tmp_path / "target/train2017").exists()


def test_a_source_that_moved(source: Path, tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "datasets/coco"
    run(monkeypatch, source, target)
    moved = source.rename(tmp_path / "elsewhere")
    run(monkeypatch, moved, target)
    check(target)
    assert (target / "annotations").resolve() == moved / "annotations"


def _empty(source: Path, target: Path) -> str:
    shutil.rmtree(source / "annotations")
    (source / "annotations").mkdir()
    return "neither instances_train2017.json nor instances_val2017.json"


def _no_images(source: Path, target: Path) -> str:
    for path in (source / "val2017").iterdir():
        path.unlink()
    return f"{source / 'val2017'}: there is nothing in it"


def _moved_images(source: Path, target: Path) -> str:
    for split in converter.SPLITS:
        shutil.rmtree(source / split)
    return f"{source}: has neither of the folders train2017 and val2017"


def _no_segments(source: Path, target: Path) -> str:
    path = source / "annotations/panoptic_val2017/b.png"
    path.write_bytes(path.read_bytes()[:60])
    return f"{path}: is missing, or no whole RGB image"


def _in_the_way(source: Path, target: Path) -> str:
    (target / "train2017").mkdir(parents=True)
    return f"{target / 'train2017'}: is in the place of a link to {source / 'train2017'}"


def _no_json(source: Path, target: Path) -> str:
    (source / "annotations/panoptic_train2017.json").write_text("{")
    return f"{source / 'annotations/panoptic_train2017.json'}: is not JSON"


@pytest.mark.parametrize(
    "damage", [_empty, _no_images, _moved_images, _no_segments, _in_the_way, _no_json]
)
def test_one_error_names_the_place(
    source: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str], damage
) -> None:
    target = tmp_path / "datasets/coco"
    words = damage(source, target)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, source, target)
    assert words in str(stopped.value.code) + capsys.readouterr().err
