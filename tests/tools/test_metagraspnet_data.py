"""MetaGraspNet: the drawn raw folders, and what the converter makes of them and of broken ones."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import demo_scenes.metagraspnet
import h5py
import numpy as np
import pytest
from commands import ROOT, run
from dataset_converters.metagraspnet import main as convert
from demo_scenes.scene import Scene, SceneObject, draw_scene
from make_demo_data import main as draw
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from pycocotools.coco import COCO
from pycocotools.mask import decode

import mtl_plugins.mm.transforms  # noqa: F401
from mtl_plugins.mm.data_check import data_problem
from mtl_plugins.mm.datasets import MetaGraspNetDataset

SPLITS = {"train": 8, "val": 4}
SIZE = (150, 200)
REAL = (3, 7)
"""Numbers of the scenes in the form of MetaGraspNet's real part."""

Json = dict[str, Any]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn folders; tests that change them take a copy."""
    root = tmp_path_factory.mktemp("demo") / "metagraspnet"
    _draw(root)
    return root


@pytest.fixture(scope="module")
def converted(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the two files, written by the command as a user types it."""
    out = tmp_path_factory.mktemp("converted") / "annotations"
    printed = run("tools/dataset_converters/metagraspnet.py", str(raw), "--out", str(out), coco=raw)
    assert "skipped: 0 viewpoints" in printed
    return out


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    """The scenes behind the files, by the rule that ``make_demo_data.py`` draws them by."""
    return {
        split: [draw_scene(np.random.default_rng([0, part, n]), SIZE) for n in range(count)]
        for part, (split, count) in enumerate(SPLITS.items())
    }


@pytest.fixture
def broken(raw: Path, tmp_path: Path) -> Path:
    """A copy of the folders, to be damaged."""
    return Path(shutil.copytree(raw, tmp_path / "raw"))


def _draw(root: Path) -> None:
    counts = [word for split, n in SPLITS.items() for word in (f"--{split}", str(n))]
    size = ["--size", str(SIZE[1]), str(SIZE[0])]
    draw(["--layout", "metagraspnet", "--out", str(root), *counts, *size])


def _convert(root: Path, out: Path) -> Json:
    convert([str(root), "--out", str(out)])
    return {split: json.loads((out / f"{split}.json").read_text()) for split in SPLITS}


def _viewpoint(number: int) -> str:
    return f"scene{number}/{3 if number in REAL else 0}"


def _change(npz: Path, **changes: Callable[[np.ndarray], np.ndarray] | None) -> None:
    """Rewrite an npz with some of its arrays changed, or dropped where the change is None."""
    with np.load(npz) as file:
        arrays = {key: file[key] for key in file.files}
    for key, change in changes.items():
        old = arrays.pop(key)
        if change is not None:
            arrays[key] = change(old)
    np.savez_compressed(npz, **arrays)


def _mask(rle: Json) -> np.ndarray:
    return decode(rle).astype(bool)


def _box(mask: np.ndarray) -> list[float]:
    rows, columns = np.nonzero(mask)
    left, top = columns.min(), rows.min()
    return [left, top, columns.max() + 1 - left, rows.max() + 1 - top]


# --- raw folders --------------------------------------------------------------------------------


def test_a_synthetic_scene_has_the_published_files_and_keys(
    raw: Path, scenes: dict[str, list[Scene]]
) -> None:
    for number in set(range(SPLITS["train"])) - set(REAL):
        scene, folder = scenes["train"][number], raw / f"train/scene{number}"
        assert {path.name for path in folder.iterdir()} == {"0_rgb.png", "0.npz", "0_scene.hdf5"}
        image = cv2.cvtColor(cv2.imread(str(folder / "0_rgb.png")), cv2.COLOR_BGR2RGB)
        np.testing.assert_array_equal(image, scene.rgb)
        with np.load(folder / "0.npz") as file:
            arrays = dict(file)
        (masks_key,) = arrays.keys() & {"occlusion_objects", "seg_masks_single"}
        common = {"depth", "instances_objects", "instances_semantic", "occlusion"}
        assert arrays.keys() == common | {masks_key}
        np.testing.assert_allclose(arrays["depth"], scene.depth * 100, rtol=1e-6)
        assert arrays[masks_key].shape == (len(scene.objects), *SIZE)
        for index, thing in enumerate(scene.objects):
            visible = arrays["instances_objects"] == index + 1
            np.testing.assert_array_equal(visible, thing.visible_mask)
            np.testing.assert_array_equal(arrays[masks_key][index] > 0, thing.amodal_mask)
            np.testing.assert_allclose(arrays["occlusion"][visible], thing.occlusion, atol=1e-6)
        assert ((arrays["instances_semantic"] > 0) == (arrays["instances_objects"] > 0)).all()
        with h5py.File(folder / "0_scene.hdf5") as file:
            assert file["objects/bbox_loose"].shape == (len(scene.objects), 4)
            assert file["objects/categories"].shape == (len(scene.objects),)
            assert file["camera/pose_relative_to_world"].shape == (1, 4, 4)


def test_both_names_of_the_masks_are_written(raw: Path) -> None:
    found = set()
    for number in (0, 1):
        with np.load(raw / f"train/scene{number}/0.npz") as file:
            found |= set(file.files) & {"occlusion_objects", "seg_masks_single"}
    assert len(found) == 2


def test_a_real_scene_has_the_published_files_and_keys(
    raw: Path, scenes: dict[str, list[Scene]]
) -> None:
    for number in REAL:
        scene, folder = scenes["train"][number], raw / f"train/scene{number}"
        names = {"3_rgb.png", "3.npz", "3_amodal.npz", "3_scene.hdf5"}
        assert {path.name for path in folder.iterdir()} == names
        with np.load(folder / "3.npz") as file:
            assert set(file.files) == {"depth", "instances_objects", "instances_semantic"}
        with np.load(folder / "3_amodal.npz") as file:
            keys = {"amodal_bitmaps_full_size_instances", "occlusion_bitmap_full_size"}
            assert set(file.files) == keys
            bitmaps = file["amodal_bitmaps_full_size_instances"] > 0
        assert bitmaps.shape == (len(scene.objects), 2, *SIZE)
        for (visible, hidden), thing in zip(bitmaps, scene.objects, strict=True):
            np.testing.assert_array_equal(visible, thing.visible_mask)
            np.testing.assert_array_equal(visible ^ hidden, thing.amodal_mask)
        with h5py.File(folder / "3_scene.hdf5") as file:
            assert list(file["objects"]) == ["categories"]


def test_the_layout_without_h5py_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_scenes.metagraspnet, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"needs h5py; pip install 'mtl-plugins\[metagraspnet\]'"):
        _draw(tmp_path / "demo")
    assert not list(tmp_path.iterdir())


# --- conversion ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_the_masks_boxes_and_occlusion_of_the_scenes_come_back(
    raw: Path, converted: Path, scenes: dict[str, list[Scene]], split: str
) -> None:
    coco = COCO(str(converted / f"{split}.json"))
    assert [(c["id"], c["name"]) for c in coco.cats.values()] == [(1, "object")]
    assert len(coco.imgs) == SPLITS[split]
    occluded = 0
    for number, scene in enumerate(scenes[split]):
        image = coco.imgs[number + 1]
        base = f"{split}/{_viewpoint(number)}"
        assert image["file_name"] == f"{base}_rgb.png"
        assert image["depth_file_name"] == f"{base}.npz"
        assert (image["height"], image["width"]) == SIZE
        with np.load(raw / image["depth_file_name"]) as file:
            assert (file["depth"].dtype, file["depth"].shape) == (np.float32, SIZE)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert len(annotations) == len(scene.objects)
        for annotation, thing in zip(annotations, scene.objects, strict=True):
            _check(annotation, thing)
            np.testing.assert_array_equal(coco.annToMask(annotation) > 0, thing.amodal_mask)
            occluded += thing.occlusion > 0.05
    assert occluded, "no object is occluded: the masks would be compared with themselves"


def _check(annotation: Json, thing: SceneObject) -> None:
    assert (annotation["category_id"], annotation["iscrowd"]) == (1, 0)
    np.testing.assert_array_equal(_mask(annotation["segmentation"]), thing.amodal_mask)
    np.testing.assert_array_equal(_mask(annotation["visible_mask"]), thing.visible_mask)
    assert annotation["bbox"] == _box(thing.amodal_mask)
    assert annotation["visible_bbox"] == _box(thing.visible_mask)
    assert annotation["area"] == thing.amodal_mask.sum()
    assert annotation["occluded_rate"] == pytest.approx(thing.occlusion)


@pytest.mark.parametrize("split", SPLITS)
def test_visible_and_occluded_part_make_up_the_object(converted: Path, split: str) -> None:
    content = json.loads((converted / f"{split}.json").read_text())
    ids = [annotation["id"] for annotation in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    for annotation in content["annotations"]:
        amodal, visible, occluded = (
            _mask(annotation[key]) for key in ("segmentation", "visible_mask", "occluded_mask")
        )
        assert visible.any() and not (visible & occluded).any()
        np.testing.assert_array_equal(visible | occluded, amodal)
        assert annotation["occluded_rate"] == pytest.approx(occluded.sum() / amodal.sum())


def test_the_same_command_gives_the_same_files(raw: Path, converted: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    _draw(again)
    for path in filter(Path.is_file, raw.rglob("*")):
        assert path.read_bytes() == (again / path.relative_to(raw)).read_bytes(), path
    _convert(again, again / "annotations")
    assert sorted(path.name for path in (again / "annotations").iterdir()) == [
        "train.json",
        "val.json",
    ]
    for split in SPLITS:
        first, second = converted / f"{split}.json", again / f"annotations/{split}.json"
        assert first.read_bytes() == second.read_bytes()


def test_scenes_without_train_and_val_folders_are_split_by_their_number(
    raw: Path, tmp_path: Path
) -> None:
    # As unpacked from the archives, somewhere below the root.
    folder = tmp_path / "MetaGraspNetV2/data_ifl"
    numbers = [2, 9, 10, 19, 20]
    for source, number in enumerate(numbers):
        shutil.copytree(raw / f"train/scene{source}", folder / f"scene{number}")
    content = _convert(tmp_path, tmp_path / "out")
    found = {
        split: [re.search(r"data_ifl/(\w+)/", i["file_name"])[1] for i in content[split]["images"]]
        for split in SPLITS
    }
    assert found == {"train": ["scene2", "scene10", "scene20"], "val": ["scene9", "scene19"]}


def test_every_viewpoint_of_a_scene_is_an_image(broken: Path, tmp_path: Path) -> None:
    for name in ("_rgb.png", ".npz"):
        scene = broken / "train/scene0"
        shutil.copy(scene / f"0{name}", scene / f"12{name}")
        shutil.copy(scene / f"0{name}", scene / f"2{name}")
    names = [image["file_name"] for image in _convert(broken, tmp_path)["train"]["images"]]
    assert names[:3] == [f"train/scene0/{number}_rgb.png" for number in (0, 2, 12)]


# --- broken data --------------------------------------------------------------------------------


def _cut(path: Path, keep: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def _flip_bytes(npz: Path, key: str) -> None:
    """Damage an array inside an npz, a little behind its header."""
    with zipfile.ZipFile(npz) as file:
        start = file.getinfo(f"{key}.npy").header_offset + 120
    content = bytearray(npz.read_bytes())
    content[start : start + 64] = bytes(255 - byte for byte in content[start : start + 64])
    npz.write_bytes(bytes(content))


def _narrower(array: np.ndarray) -> np.ndarray:
    return array[..., 1:]


# Scene 0 is synthetic, scene 3 real: (what is done to the folder of scene 0 or 3, what is said).
BROKEN = {
    "no image": (0, lambda s: (s / "0_rgb.png").unlink(), r"0_rgb\.png: is missing"),
    "cut image": (0, lambda s: _cut(s / "0_rgb.png"), r"0_rgb\.png: is no image"),
    "no image at all": (0, lambda s: (s / "0_rgb.png").write_text("x"), r"0_rgb\.png: is no image"),
    "no npz": (0, lambda s: (s / "0.npz").unlink(), r"0\.npz: is missing"),
    "empty npz": (0, lambda s: (s / "0.npz").write_bytes(b""), r"0\.npz: cannot be read"),
    "text as npz": (0, lambda s: (s / "0.npz").write_text("x"), r"0\.npz: cannot be read"),
    "cut npz": (0, lambda s: _cut(s / "0.npz"), r"0\.npz: cannot be read"),
    "damaged numbers": (
        0,
        lambda s: _flip_bytes(s / "0.npz", "instances_objects"),
        r"0\.npz: cannot be read: .*decompress",
    ),
    "no depth": (
        0,
        lambda s: _change(s / "0.npz", depth=None),
        r"0\.npz: has no depth; found: .*instances_objects",
    ),
    "no numbers": (
        0,
        lambda s: _change(s / "0.npz", instances_objects=None),
        r"0\.npz: has no instances_objects; found: depth",
    ),
    "no masks": (
        0,
        lambda s: _change(s / "0.npz", occlusion_objects=None),
        r"0\.npz: has no occlusion_objects or seg_masks_single; found: depth",
    ),
    "other size of the depth": (
        0,
        lambda s: _change(s / "0.npz", depth=_narrower),
        r"0\.npz: depth has the shape \(150, 199\), not \(150, 200\)",
    ),
    "other size of the masks": (
        0,
        lambda s: _change(s / "0.npz", occlusion_objects=_narrower),
        r"0\.npz: occlusion_objects has the shape \(\d, 150, 199\), not \(any, 150, 200\)",
    ),
    "a mask too few": (
        0,
        lambda s: _change(s / "0.npz", occlusion_objects=lambda masks: masks[1:]),
        r"0\.npz: instances_objects has numbers from 0 to \d, not 0 to \d,",
    ),
    "masks of other objects": (
        0,
        lambda s: _change(s / "0.npz", occlusion_objects=lambda masks: np.roll(masks, 1, axis=0)),
        r"0\.npz: the masks of .* cover \d+% of the objects of the same number",
    ),
    "real, no depth": (
        3,
        lambda s: _change(s / "3.npz", depth=None),
        r"3\.npz: has no depth; found: instances_objects",
    ),
    "real, no amodal masks": (
        3,
        lambda s: (s / "3_amodal.npz").unlink(),
        r"3\.npz: has no occlusion_objects or seg_masks_single",
    ),
    "real, no bitmaps": (
        3,
        lambda s: _change(s / "3_amodal.npz", amodal_bitmaps_full_size_instances=None),
        r"3_amodal\.npz: has no amodal_bitmaps_full_size_instances; "
        "found: occlusion_bitmap_full_size",
    ),
    "real, visible bitmaps alone": (
        3,
        lambda s: _change(
            s / "3_amodal.npz", amodal_bitmaps_full_size_instances=lambda maps: maps[:, :1]
        ),
        r"3_amodal\.npz: .* has the shape \(\d, 1, 150, 200\), not \(any, 2, 150, 200\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_viewpoint_is_reported_and_left_out(
    broken: Path, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    number, damage, message = BROKEN[case]
    damage(broken / f"train/scene{number}")
    content = _convert(broken, tmp_path / "out")
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert re.search(rf"^skipped .*train/scene{number}/{message}", line), line
    assert "train.json: 7 images" in printed.out and "skipped: 1 viewpoints" in printed.out

    whole = {split: json.loads((converted / f"{split}.json").read_text()) for split in SPLITS}
    assert content["val"] == whole["val"]
    assert _by_file(content["train"]) == {
        name: annotations
        for name, annotations in _by_file(whole["train"]).items()
        if f"/scene{number}/" not in name
    }


def _by_file(content: Json) -> dict[str, list[Json]]:
    """The annotations of each image, without the numbers."""
    names = {image["id"]: image["file_name"] for image in content["images"]}
    found: dict[str, list[Json]] = {name: [] for name in names.values()}
    for annotation in content["annotations"]:
        rest = {k: v for k, v in annotation.items() if k not in ("id", "image_id")}
        found[names[annotation["image_id"]]].append(rest)
    return found


@pytest.mark.parametrize("number", [0, 3])
def test_an_object_without_a_visible_pixel_is_left_out_and_counted(
    broken: Path,
    scenes: dict[str, list[Scene]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    if number in REAL:

        def hide(maps: np.ndarray) -> np.ndarray:
            maps[0] = [np.zeros(SIZE), maps[0].any(0)]
            return maps

        _change(broken / "train/scene3/3_amodal.npz", amodal_bitmaps_full_size_instances=hide)
    else:
        _change(
            broken / "train/scene0/0.npz",
            instances_objects=lambda numbers: np.where(numbers == 1, 0, numbers),
        )
    content = _convert(broken, tmp_path / "out")
    assert "1 objects without a visible pixel" in capsys.readouterr().out.splitlines()[0]
    annotations = _by_file(content["train"])[f"train/{_viewpoint(number)}_rgb.png"]
    others = scenes["train"][number].objects[1:]
    for annotation, thing in zip(annotations, others, strict=True):
        _check(annotation, thing)


def test_a_scene_without_objects_is_an_image_without_annotations(
    broken: Path, tmp_path: Path
) -> None:
    _change(
        broken / "train/scene0/0.npz",
        instances_objects=np.zeros_like,
        occlusion_objects=lambda masks: masks[:0],
    )
    annotations = _by_file(_convert(broken, tmp_path / "out")["train"])
    assert annotations["train/scene0/0_rgb.png"] == []
    assert len(annotations) == SPLITS["train"]


def test_numbers_may_be_floats_with_nan_and_masks_a_pixel_off(broken: Path, tmp_path: Path) -> None:
    _change(
        broken / "train/scene0/0.npz",
        instances_objects=lambda numbers: np.where(numbers == 0, np.nan, numbers),
        occlusion_objects=lambda masks: np.roll(masks, 1, axis=-1).astype(float),
    )
    with np.load(broken / "train/scene0/0.npz") as file:
        numbers, masks = file["instances_objects"], file["occlusion_objects"] > 0
    annotations = _by_file(_convert(broken, tmp_path / "out")["train"])["train/scene0/0_rgb.png"]
    assert len(annotations) == len(masks)
    for number, (annotation, mask) in enumerate(zip(annotations, masks, strict=True), start=1):
        visible = numbers == number
        np.testing.assert_array_equal(_mask(annotation["visible_mask"]), visible)
        np.testing.assert_array_equal(_mask(annotation["segmentation"]), visible | mask)


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_with_nothing_usable_is_an_error_and_leaves_the_earlier_files(
    broken: Path, tmp_path: Path, split: str
) -> None:
    out = tmp_path / "out"
    _convert(broken, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for path in (broken / split).rglob("*_rgb.png"):
        path.unlink()
    with pytest.raises(SystemExit) as stopped:
        convert([str(broken), "--out", str(out)])
    # A text as the code of an exit is printed, and the exit status is 1.
    assert f"no usable viewpoint for {split}.json: looked in {broken / split}" in stopped.value.code
    for name in ("scene*/N_rgb.png", "occlusion_objects", "amodal_bitmaps_full_size_instances"):
        assert name in stopped.value.code
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_without_scenes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no usable viewpoint for train.json: looked in .*scenes"):
        convert([str(tmp_path), "--out", str(tmp_path / "out")])
    assert not list((tmp_path / "out").iterdir())


def test_bad_arguments_are_named(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        convert([str(tmp_path / "nowhere"), "--out", str(tmp_path)])
    assert f"ROOT {tmp_path / 'nowhere'}: there is no such folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="--out .*file: cannot write there"):
        convert([str(raw), "--out", str(tmp_path / "file")])


# --- which of the data, and how -----------------------------------------------------------------


def _masks_of(content: Json, number: int) -> list[np.ndarray]:
    annotations = _by_file(content["train"])[f"train/{_viewpoint(number)}_rgb.png"]
    return [_mask(annotation["segmentation"]) for annotation in annotations]


def test_seg_masks_single_comes_first(
    broken: Path, scenes: dict[str, list[Scene]], tmp_path: Path
) -> None:
    """As in the authors' viewer, where it overwrites the other."""
    npz = broken / "train/scene0/0.npz"
    with np.load(npz) as file:
        arrays = dict(file)
    whole = arrays.pop("occlusion_objects")
    both = {"occlusion_objects": np.ones_like(whole), "seg_masks_single": whole}
    np.savez_compressed(npz, **arrays, **both)
    for found, thing in zip(
        _masks_of(_convert(broken, tmp_path / "out"), 0), scenes["train"][0].objects, strict=True
    ):
        np.testing.assert_array_equal(found, thing.amodal_mask)


def test_layers_may_hold_the_hidden_part_alone(
    broken: Path, converted: Path, scenes: dict[str, list[Scene]], tmp_path: Path
) -> None:
    things = scenes["train"][0].objects
    hidden = np.array([thing.amodal_mask & ~thing.visible_mask for thing in things], np.uint8)
    assert hidden.any()
    _change(broken / "train/scene0/0.npz", occlusion_objects=lambda masks: hidden)
    _convert(broken, tmp_path / "out")
    for split in SPLITS:
        written = (tmp_path / f"out/{split}.json").read_text()
        assert written == (converted / f"{split}.json").read_text()


def test_scenes_behind_symbolic_links(raw: Path, converted: Path, tmp_path: Path) -> None:
    root = tmp_path / "linked"
    root.mkdir()
    for split in SPLITS:
        (root / split).symlink_to(raw / split)
    content = _convert(root, tmp_path / "out")
    assert content["train"] == json.loads((converted / "train.json").read_text())
    each = tmp_path / "each"
    for split in SPLITS:
        (each / split).mkdir(parents=True)
        for scene in (raw / split).iterdir():
            (each / split / scene.name).symlink_to(scene)
        (each / split / "round").symlink_to(each)
    assert _convert(each, tmp_path / "out") == content


def test_some_of_the_viewpoints(raw: Path, converted: Path, tmp_path: Path) -> None:
    whole = _by_file(json.loads((converted / "train.json").read_text()))

    def found(*options: str) -> dict[str, list[Json]]:
        convert([str(raw), "--out", str(tmp_path), "--splits", "train", *options])
        assert [path.name for path in tmp_path.glob("*.json")] == ["train.json"]
        return _by_file(json.loads((tmp_path / "train.json").read_text()))

    def of(*scenes: int) -> dict[str, list[Json]]:
        names = [f"train/{_viewpoint(scene)}_rgb.png" for scene in scenes]
        return {name: whole[name] for name in names}

    assert found("--every", "3") == of(0, 3, 6)
    assert found("--every", "3", "--limit", "2") == of(0, 3)
    assert found("--scenes", "scene2", "train/scene5") == of(2, 5)
    (tmp_path / "scenes.txt").write_text("scene7\nscene1\n")
    assert found("--workers", "2", "--scenes", f"@{tmp_path / 'scenes.txt'}") == of(1, 7)


def test_a_scene_that_is_not_there_and_a_number_that_is_none(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, words in (
        (["--scenes", "scene77"], "--scenes scene77: ROOT"),
        (["--every", "0"], "argument --every: '0' is not a number from 1 on"),
    ):
        with pytest.raises(SystemExit):
            convert([str(raw), "--out", str(tmp_path), *options])
        assert words in capsys.readouterr().err


# --- a file from which objects are read one image at a time -------------------------------------


def _dataset(file: Path, raw: Path) -> MetaGraspNetDataset:
    return MetaGraspNetDataset(
        ann_file=str(file), data_prefix={"img": str(raw)}, filter_cfg={"filter_empty_gt": True}
    )


def _without_places(file: Path, out: Path) -> Path:
    """The same COCO as any other program writes it."""
    content = json.loads(file.read_text())
    for image in content["images"]:
        del image["annotations_at"]
    out.write_text(json.dumps(content))
    return out


def test_objects_are_those_of_the_file_read_whole(
    raw: Path, converted: Path, tmp_path: Path
) -> None:
    lazy = _dataset(converted / "train.json", raw)
    eager = _dataset(_without_places(converted / "train.json", tmp_path / "other.json"), raw)
    assert len(lazy) == len(eager) == SPLITS["train"]
    for number in range(len(eager)):
        assert lazy.get_data_info(number) == eager.get_data_info(number)
        assert lazy.get_cat_ids(number) == eager.get_cat_ids(number)
    # What is kept of an image knows nothing of its objects.
    assert lazy.data_bytes.nbytes * 5 < eager.data_bytes.nbytes


def test_an_image_without_objects_is_filtered(broken: Path, tmp_path: Path) -> None:
    _change(
        broken / "train/scene0/0.npz",
        instances_objects=np.zeros_like,
        occlusion_objects=lambda masks: masks[:0],
    )
    _convert(broken, tmp_path)
    eager = _without_places(tmp_path / "train.json", tmp_path / "other.json")
    for file in (tmp_path / "train.json", eager):
        assert len(_dataset(file, broken)) == SPLITS["train"] - 1


def test_a_file_that_was_edited_is_named(raw: Path, converted: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_text((converted / "train.json").read_text().replace('"id": 1,', '"id": 1111,', 1))
    with pytest.raises(ValueError, match=r"train\.json: the annotations of the image with the id"):
        _dataset(file, raw).get_data_info(0)


def test_the_converted_files_may_lie_elsewhere(
    raw: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAGRASPNET_ROOT", str(raw))
    path = ROOT / "configs/metagraspnet/uoais_r18-small_fpn_rgbd.py"
    there = Config.fromfile(path).train_dataloader.dataset.ann_file
    assert there == str(raw / "annotations/train.json")
    monkeypatch.setenv("METAGRASPNET_DERIVED", str(converted))
    cfg = Config.fromfile(path)
    assert cfg.val_evaluator.ann_file == str(converted / "val.json")
    with DefaultScope.overwrite_default_scope("mmdet"):
        assert len(DATASETS.build(cfg.train_dataloader.dataset)) == SPLITS["train"]
        assert data_problem(cfg) is None
