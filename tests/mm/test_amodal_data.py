"""MetaGraspNet from the file to the batch: depth and both masks of an object stay aligned."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms import Compose
from mmdet.datasets.transforms import RandomCrop
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.registry import DefaultScope
from PIL import Image
from pycocotools import mask as coco_mask
from torch.testing import assert_close

import mtl_plugins.mm.transforms  # noqa: F401
from mtl_plugins.mm.datasets import MetaGraspNetDataset
from mtl_plugins.mm.transforms import LoadDepth

Json = dict[str, Any]
Masks = tuple[np.ndarray, np.ndarray]
"""Amodal and visible mask of an object, bool ``[H, W]``."""

WIDTH, HEIGHT = 60, 40
NEAREST, FARTHEST = 50.0, 305.0
"""One centimetre is one of 255 steps."""
LOAD = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadDepth", "depth_range": (NEAREST, FARTHEST)},
    {"type": "LoadAmodalAnnotations"},
]
PACK = [{"type": "PackAmodalInputs"}]

pytestmark = pytest.mark.usefixtures("mmdet_scope")


# --- scenes -------------------------------------------------------------------------------------


def rectangle(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def stack(amodal: Sequence[np.ndarray]) -> list[Masks]:
    """Objects, the nearest of which is the last; of some nothing may be visible."""
    hidden = [np.any([np.zeros((HEIGHT, WIDTH), bool), *amodal[i:]], 0) for i in range(1, 99)]
    return [(mask, mask & ~over) for mask, over in zip(amodal, hidden, strict=False)]


def rle(mask: np.ndarray) -> Json:
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {**encoded, "counts": encoded["counts"].decode()}


def box(mask: np.ndarray) -> list[float]:
    """Corners of the box around a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1.0, rows[-1] + 1.0]


def share_hidden(amodal: np.ndarray, visible: np.ndarray) -> float:
    return 1 - visible.sum() / amodal.sum()


def coordinates() -> np.ndarray:
    """An image whose pixels say where they were: x and y in blue and green, 255 in red."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x, y, np.full_like(x, 255)], -1).astype(np.uint8)


def any_depth() -> np.ndarray:
    """Whole centimetres within the range."""
    draw = np.random.default_rng(0)
    return draw.integers(NEAREST, FARTHEST + 1, (HEIGHT, WIDTH)).astype(np.float32)


def content(scenes: Sequence[Sequence[Masks]]) -> Json:
    images, annotations = [], []
    for image, scene in enumerate(scenes, start=1):
        name, npz = f"scene/{image}_rgb.png", f"scene/{image}.npz"
        size = {"width": WIDTH, "height": HEIGHT}
        images.append({"id": image, "file_name": name, "depth_file_name": npz, **size})
        for amodal, visible in scene:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": coco_mask.toBbox(rle(amodal)).tolist(),
                    "area": int(amodal.sum()),
                    "segmentation": rle(amodal),
                    "visible_mask": rle(visible),
                    "occluded_rate": share_hidden(amodal, visible),
                }
            )
    categories = [{"id": 1, "name": "object"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(root: Path, *scenes: Sequence[Masks], image: np.ndarray | None = None) -> None:
    (root / "scene").mkdir(exist_ok=True)
    for number in range(1, len(scenes) + 1):
        pixels = coordinates() if image is None else image
        Image.fromarray(pixels[..., ::-1]).save(root / f"scene/{number}_rgb.png")
        np.savez(root / f"scene/{number}.npz", depth=any_depth())
    (root / "train.json").write_text(json.dumps(content(scenes)))


def build(root: Path, *transforms: Json, **more: Any) -> MetaGraspNetDataset:
    config = {
        "type": "MetaGraspNetDataset",
        "data_root": str(root),
        "ann_file": "train.json",
        "data_prefix": {"img": ""},
        "pipeline": [*LOAD, *transforms, *PACK],
    }
    return DATASETS.build({**config, **more})


SCENE = stack([rectangle(5, 5, 20, 10), rectangle(20, 8, 10, 20), rectangle(45, 30, 10, 5)])


# --- data set -----------------------------------------------------------------------------------


def test_what_an_image_has(tmp_path: Path) -> None:
    write(tmp_path, SCENE, [])
    first, second = (build(tmp_path).get_data_info(i) for i in range(2))
    assert first["img_path"] == str(tmp_path / "scene/1_rgb.png")
    assert first["depth_path"] == str(tmp_path / "scene/1.npz")
    assert second["instances"] == []
    for found, (amodal, visible) in zip(first["instances"], SCENE, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(found["mask"]), amodal)
        np.testing.assert_array_equal(coco_mask.decode(found["visible_mask"]), visible)
        assert found["bbox"] == box(amodal)
        assert found["occluded_rate"] == share_hidden(amodal, visible)
        assert (found["bbox_label"], found["ignore_flag"]) == (0, 0)


def test_depth_may_lie_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, SCENE)
    dataset = build(tmp_path, data_prefix={"img": "a", "depth": "b"})
    info = dataset.get_data_info(0)
    assert info["img_path"] == str(tmp_path / "a/scene/1_rgb.png")
    assert info["depth_path"] == str(tmp_path / "b/scene/1.npz")


def test_images_without_an_object_are_filtered_as_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, [], SCENE)
    kept = build(tmp_path, filter_cfg={"filter_empty_gt": True})
    assert [kept.get_data_info(i)["img_id"] for i in range(len(kept))] == [2]


def test_parsing_leaves_the_records_as_they_were(tmp_path: Path) -> None:
    write(tmp_path, SCENE)
    dataset, records = build(tmp_path), content([SCENE])
    raw = {
        "raw_img_info": {**records["images"][0], "img_id": 1},
        "raw_ann_info": records["annotations"],
    }
    before = copy.deepcopy(raw)
    assert len(dataset.parse_data_info(raw)["instances"]) == len(SCENE)
    assert raw == before


KEYS = {
    "images": ["id", "file_name", "depth_file_name", "height", "width"],
    "annotations": [
        "id",
        "image_id",
        "category_id",
        "iscrowd",
        "bbox",
        "area",
        "segmentation",
        "visible_mask",
        "occluded_rate",
    ],
    "categories": ["id", "name"],
}


@pytest.mark.parametrize("kind, key", [(kind, key) for kind in KEYS for key in KEYS[kind]])
def test_a_record_that_lacks_a_key_is_named(tmp_path: Path, kind: str, key: str) -> None:
    write(tmp_path, SCENE)
    records = json.loads((tmp_path / "train.json").read_text())
    del records[kind][-1][key]
    (tmp_path / "train.json").write_text(json.dumps(records))
    last = len(records[kind])
    name = f"number {last - 1}" if key == "id" else f"id {last}"
    with pytest.raises(ValueError, match=rf"train\.json: of the {kind}, {name} has no '{key}'"):
        build(tmp_path)


@pytest.mark.parametrize("kind", KEYS)
def test_a_file_that_lacks_a_list_is_named(tmp_path: Path, kind: str) -> None:
    write(tmp_path, SCENE)
    records = json.loads((tmp_path / "train.json").read_text())
    del records[kind]
    (tmp_path / "train.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match=rf"train\.json: there is no '{kind}'"):
        build(tmp_path)


def test_the_converters_files(tmp_path: Path) -> None:
    options = ["--train", "4", "--val", "1", "--size", "160", "120", "--out", str(tmp_path)]
    run("tools/make_demo_data.py", "--layout", "metagraspnet", *options, coco=tmp_path)
    converter = "tools/dataset_converters/metagraspnet.py"
    run(converter, str(tmp_path), "--out", str(tmp_path / "annotations"), coco=tmp_path)
    dataset = build(tmp_path, ann_file="annotations/train.json")
    assert len(dataset) == 4
    labels = []
    for i, sample in enumerate(dataset):
        rates = [one["occluded_rate"] for one in dataset.get_data_info(i)["instances"]]
        truth = sample["data_samples"].gt_instances
        amodal, visible = truth.masks.masks > 0, truth.visible_masks.masks > 0
        assert not (visible & ~amodal).any()
        hidden = (amodal & ~visible).sum((1, 2)) / amodal.sum((1, 2))
        np.testing.assert_allclose(hidden, rates)
        assert truth.occluded.tolist() == [int(rate >= 0.05) for rate in rates]
        labels += truth.occluded.tolist()
        assert sample["inputs"].shape == (4, 120, 160)
    assert {0, 1} == set(labels)


# --- depth --------------------------------------------------------------------------------------


def load_depth(tmp_path: Path, depth: np.ndarray, **options: Any) -> np.ndarray:
    path = str(tmp_path / "1.npz")
    np.savez(path, depth=depth)
    image = np.full((*depth.shape, 3), 7, np.uint8)
    results = {"img": image, "img_path": "1.png", "depth_path": path}
    loaded = LoadDepth(**{"depth_range": (50, 250), **options})(results)["img"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded[..., :3], image)
    return loaded[..., 3]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16])
def test_depth_is_clipped_and_scaled(tmp_path: Path, dtype: type) -> None:
    depth = np.array([[0, 20, 50, 60, 150], [240, 250, 251, 999, 60000]], dtype)
    expected = [[0, 0, 0, 12.75, 127.5], [242.25, 255, 255, 255, 255]]
    np.testing.assert_allclose(load_depth(tmp_path, depth), expected, rtol=1e-6)


def test_depth_that_was_not_measured_is_0(tmp_path: Path) -> None:
    depth = np.array([[np.nan, 0, np.inf, -np.inf]])
    np.testing.assert_array_equal(load_depth(tmp_path, depth), [[0, 0, 255, 0]])


@pytest.mark.parametrize("depth_range", [(250, 50), (50, 50), (50,), (1, 2, 3)])
def test_a_range_that_is_none_is_refused(depth_range: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="depth_range"):
        LoadDepth(depth_range)


def test_depth_of_another_size_is_named(tmp_path: Path) -> None:
    write(tmp_path, SCENE)
    np.savez(tmp_path / "scene/1.npz", depth=any_depth()[:, 1:])
    with pytest.raises(ValueError, match=r"1\.npz.*\(40, 59\).*1_rgb\.png.*\(40, 60\)"):
        build(tmp_path)[0]


def test_depth_that_is_not_there_is_named(tmp_path: Path) -> None:
    write(tmp_path, SCENE)
    np.savez(tmp_path / "scene/1.npz", disparity=any_depth())
    with pytest.raises(ValueError, match=r"1\.npz.*'depth'.*disparity"):
        build(tmp_path)[0]
    (tmp_path / "scene/1.npz").write_bytes((tmp_path / "scene/1.npz").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"1\.npz.*cannot be read"):
        build(tmp_path)[0]
    (tmp_path / "scene/1.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.npz"):
        build(tmp_path)[0]


def test_colour_jitter_leaves_depth_alone(tmp_path: Path) -> None:
    write(tmp_path, SCENE)
    plain = build(tmp_path)[0]["inputs"]
    load_image, *others = LOAD
    jitter = {"type": "PhotoMetricDistortion"}
    dataset = build(tmp_path, pipeline=[load_image, jitter, *others, *PACK])
    for seed in range(5):
        np.random.seed(seed)
        jittered = dataset[0]["inputs"]
        assert not torch.equal(jittered[:3], plain[:3])
        assert torch.equal(jittered[3], plain[3])


# --- geometry -----------------------------------------------------------------------------------

NEAREST_RESIZE = {"keep_ratio": False, "interpolation": "nearest"}
EXACT: dict[str, list[Json]] = {
    "nothing": [],
    "flip": [{"type": "RandomFlip", "prob": [0.4, 0.3], "direction": ["horizontal", "vertical"]}],
    "diagonal": [{"type": "RandomFlip", "prob": 1.0, "direction": "diagonal"}],
    "crop": [{"type": "RandomCrop", "crop_size": (25, 25), "allow_negative_crop": True}],
    "pad": [{"type": "Pad", "size": (80, 64)}],
    "all": [
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "RandomCrop", "crop_size": (30, 30), "allow_negative_crop": True},
        {"type": "RandomFlip", "prob": 0.5, "direction": "vertical"},
        {"type": "Pad", "size_divisor": 32},
        {"type": "FilterAnnotations", "min_gt_bbox_wh": (0, 0), "keep_empty": False},
    ],
}
INEXACT: dict[str, list[Json]] = {
    "resize": [{"type": "Resize", "scale": (97, 71), "keep_ratio": False}],
    "shapes": [{"type": "RandomResize", "scale": [(40, 60), (120, 90)], "keep_ratio": True}],
    "rotate": [{"type": "Rotate", "prob": 1.0}],
}


def random_scene(draw: np.random.Generator) -> list[Masks]:
    """Overlapping rectangles, some of which have a hole."""
    masks = []
    for _ in range(draw.integers(0, 6)):
        width, height = draw.integers(3, 30, 2)
        mask = rectangle(draw.integers(0, WIDTH - 3), draw.integers(0, HEIGHT - 3), width, height)
        if draw.integers(2):
            hole = rectangle(*draw.integers(0, 40, 2), *draw.integers(1, 12, 2))
            mask = mask & ~hole if (mask & ~hole).any() else mask
        masks.append(mask)
    return stack(masks)


def prepare(scene: Sequence[Masks], transforms: Sequence[Any], image: np.ndarray) -> Json:
    """Runs what follows the loading of files, which takes long for many examples."""
    depth = any_depth() - NEAREST
    instances = [
        {
            "bbox": box(amodal),
            "bbox_label": 0,
            "ignore_flag": 0,
            "mask": rle(amodal),
            "visible_mask": rle(visible),
        }
        for amodal, visible in scene
    ]
    results = {
        "img": np.dstack([image, depth]).astype(np.float32),
        "img_path": "1_rgb.png",
        "img_shape": (HEIGHT, WIDTH),
        "ori_shape": (HEIGHT, WIDTH),
        "instances": instances,
    }
    with DefaultScope.overwrite_default_scope("mmdet"):
        return Compose([*LOAD[2:], *transforms, *PACK])(results)


def arrays(packed: Json) -> tuple[np.ndarray, np.ndarray]:
    """Amodal and visible masks, bool ``[n, H, W]``."""
    truth = packed["data_samples"].gt_instances
    return truth.masks.masks > 0, truth.visible_masks.masks > 0


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_masks_boxes_and_depth_move_as_the_pixels_do(name: str, seed: int) -> None:
    scene = random_scene(np.random.default_rng(seed))
    np.random.seed(seed)
    packed = prepare(scene, EXACT[name], coordinates())
    x, y, inside, depth = packed["inputs"].numpy()
    inside = inside == 255

    def move(array: np.ndarray) -> np.ndarray:
        """The label image by plain indexing: what was at the place that the pixel came from."""
        return np.where(inside, array[y.astype(int), x.astype(int)], 0)

    np.testing.assert_array_equal(depth, move(any_depth() - NEAREST))
    moved = [(move(amodal), move(visible), box(amodal)) for amodal, visible in scene]
    expected = [one for one in moved if one[1].any()]
    truth = packed["data_samples"].gt_instances
    amodal, visible = arrays(packed)
    assert len(truth) == len(amodal) == len(visible) == len(expected)
    for i, (whole, seen, (x1, y1, x2, y2)) in enumerate(expected):
        np.testing.assert_array_equal(amodal[i], whole)
        np.testing.assert_array_equal(visible[i], seen)
        filled = rectangle(int(x1), int(y1), int(x2 - x1), int(y2 - y1))
        assert truth.bboxes.tensor[i].tolist() == box(move(filled))
        hidden = int(whole.sum() - seen.sum())
        # In whole numbers, so that five percent are exact.
        assert truth.occluded[i] == int(20 * hidden >= whole.sum())
    assert truth.labels.tolist() == [0] * len(expected)
    assert truth.occluded.dtype == truth.labels.dtype == torch.int64


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(20, 150), height=st.integers(20, 150))
def test_a_resize_scales_masks_boxes_and_depth(seed: int, width: int, height: int) -> None:
    scene = random_scene(np.random.default_rng(seed))
    resize = {"type": "Resize", "scale": (width, height), **NEAREST_RESIZE}
    packed = prepare(scene, [resize], coordinates())
    x, y, _, depth = packed["inputs"].numpy().astype(int)
    assert x.shape == (height, width)
    np.testing.assert_array_equal(depth, (any_depth() - NEAREST)[y, x])
    expected = [(a, v) for a, v in scene if v[y, x].any()]
    amodal, visible = arrays(packed)
    np.testing.assert_array_equal(amodal, np.reshape([a[y, x] for a, _ in expected], amodal.shape))
    np.testing.assert_array_equal(
        visible, np.reshape([v[y, x] for _, v in expected], visible.shape)
    )
    boxes = torch.tensor([box(a) for a, _ in expected]).reshape(-1, 4)
    scale = torch.tensor([width / WIDTH, height / HEIGHT]).repeat(2)
    found = packed["data_samples"].gt_instances.bboxes.tensor
    assert_close(found, (boxes * scale).float())


@pytest.mark.parametrize("name", [*EXACT, *INEXACT])
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_visible_lies_inside_the_amodal_and_depth_in_the_image(name: str, seed: int) -> None:
    scene = random_scene(np.random.default_rng(seed))
    grey = (any_depth() - NEAREST).astype(np.uint8)
    image = np.dstack([grey, grey, np.full_like(grey, 255)])
    np.random.seed(seed)
    packed = prepare(scene, {**EXACT, **INEXACT}[name], image)
    blue, _, red, depth = packed["inputs"]
    # Where the image was not filled up with grey, depth is what blue is.
    assert_close(depth[red == 255], blue[red == 255], rtol=0, atol=0.01)
    assert (red == 255).float().mean() > 0.2
    amodal, visible = arrays(packed)
    assert not (visible & ~amodal).any()
    shares = (amodal & ~visible).sum((1, 2)) / np.maximum(amodal.sum((1, 2)), 1)
    occluded = packed["data_samples"].gt_instances.occluded
    assert occluded.tolist() == (shares >= 0.05).astype(int).tolist()


@pytest.mark.parametrize(
    "hidden, threshold, occluded", [(9, 0.05, 0), (10, 0.05, 1), (99, 0.5, 0), (100, 0.5, 1)]
)
def test_the_threshold_counts_as_occluded(hidden: int, threshold: float, occluded: int) -> None:
    whole = rectangle(5, 5, 20, 10)
    seen = whole.copy()
    rows, columns = np.nonzero(whole)
    seen[rows[:hidden], columns[:hidden]] = False
    pack = TRANSFORMS.build({"type": "PackAmodalInputs", "occluded_threshold": threshold})
    loaded = TRANSFORMS.build(LOAD[2])(
        {
            "img": np.zeros((HEIGHT, WIDTH, 4), np.float32),
            "ori_shape": (HEIGHT, WIDTH),
            "instances": [
                {
                    "bbox": box(whole),
                    "bbox_label": 0,
                    "ignore_flag": 0,
                    "mask": rle(whole),
                    "visible_mask": rle(seen),
                }
            ],
        }
    )
    assert pack(loaded)["data_samples"].gt_instances.occluded.tolist() == [occluded]


class CropAt(RandomCrop):
    """Crops at a column and not at random."""

    def __init__(self, left: int, width: int, **options: Any) -> None:
        super().__init__((width, HEIGHT), allow_negative_crop=True, **options)
        self.left = left

    def _rand_offset(self, margin: tuple[int, int]) -> tuple[int, int]:
        return 0, self.left


def crop_at(scene: Sequence[Masks], left: int, width: int, **options: Any) -> Json:
    return prepare(scene, [CropAt(left, width, **options)], coordinates())


def test_an_object_cropped_away_leaves_no_annotation() -> None:
    # The third lies in columns 45 to 54.
    truth = crop_at(SCENE, 0, 45)["data_samples"].gt_instances
    assert truth.bboxes.tensor.tolist() == [box(amodal) for amodal, _ in SCENE[:2]]
    assert len(truth.masks) == len(truth.visible_masks) == len(truth.occluded) == 2


def test_an_object_of_which_only_the_hidden_part_is_left_leaves_none() -> None:
    # Of the first, in columns 5 to 24, the second hides all from 20 on.
    far, near = rectangle(5, 5, 20, 10), rectangle(20, 5, 10, 10)
    truth = crop_at(stack([far, near]), 20, 40)["data_samples"].gt_instances
    assert truth.bboxes.tensor.tolist() == [[0, 5, 10, 15]]
    assert (truth.masks.masks > 0).sum() == near.sum()


def test_what_is_left_of_an_object_has_its_own_rate() -> None:
    # A quarter of the first is hidden, all of it in its right half.
    scene = stack([rectangle(10, 5, 20, 10), rectangle(25, 5, 20, 10)])
    left = crop_at(scene, 0, 20)["data_samples"].gt_instances
    assert left.occluded.tolist() == [0]
    assert left.masks.masks.sum() == left.visible_masks.masks.sum() == 100
    right = crop_at(scene, 20, 20)["data_samples"].gt_instances
    assert right.occluded.tolist() == [1, 0]
    assert right.masks.masks[0].sum() == 100
    assert right.visible_masks.masks[0].sum() == 50


def test_a_crop_that_measures_boxes_anew_keeps_the_amodal_ones() -> None:
    scene = stack([rectangle(10, 5, 20, 10), rectangle(5, 0, 20, 40)])
    truth = crop_at(scene, 15, 40, recompute_bbox=True)["data_samples"].gt_instances
    assert truth.bboxes.tensor.tolist() == [[0, 5, 15, 15], [0, 0, 10, 40]]


def test_an_image_without_an_object_is_packed(tmp_path: Path) -> None:
    write(tmp_path, [])
    for packed in (build(tmp_path)[0], crop_at(SCENE, 55, 5)):
        sample = packed["data_samples"]
        truth, ignored = sample.gt_instances, sample.ignored_instances
        assert len(truth) == len(ignored) == 0
        size = tuple(packed["inputs"].shape[1:])
        for masks in (truth.masks, truth.visible_masks):
            assert (masks.height, masks.width) == size
            assert masks.masks.shape == (0, *size)
        assert truth.bboxes.tensor.shape == (0, 4)
        assert truth.occluded.dtype == torch.int64


def test_a_transform_may_drop_one_of_the_masks() -> None:
    # Of the first 200 pixels, 20 can be seen.
    scene = stack([rectangle(5, 5, 20, 10), rectangle(7, 5, 20, 10)])
    options = {"by_box": False, "by_mask": True, "min_gt_mask_area": 50}
    packed = prepare(scene, [{"type": "FilterAnnotations", **options}], coordinates())
    assert packed["data_samples"].gt_instances.bboxes.tensor.tolist() == [box(scene[1][0])]


def test_crowds_are_ignored(tmp_path: Path) -> None:
    write(tmp_path, SCENE)
    records = json.loads((tmp_path / "train.json").read_text())
    records["annotations"][1]["iscrowd"] = 1
    (tmp_path / "train.json").write_text(json.dumps(records))
    sample = build(tmp_path)[0]["data_samples"]
    ignored, truth = sample.ignored_instances, sample.gt_instances
    assert ignored.bboxes.tensor.tolist() == [box(SCENE[1][0])]
    assert ignored.labels.tolist() == [0]
    assert truth.bboxes.tensor.tolist() == [box(SCENE[i][0]) for i in (0, 2)]
    assert truth.occluded.tolist() == [1, 0]
    for i, (amodal, visible) in enumerate([SCENE[0], SCENE[2]]):
        np.testing.assert_array_equal(truth.masks.masks[i], amodal)
        np.testing.assert_array_equal(truth.visible_masks.masks[i], visible)


def test_classes_come_through(tmp_path: Path) -> None:
    write(tmp_path, SCENE)
    records = json.loads((tmp_path / "train.json").read_text())
    records["categories"].append({"id": 7, "name": "cup"})
    records["annotations"][1]["category_id"] = 7
    (tmp_path / "train.json").write_text(json.dumps(records))
    classes = {"classes": ("object", "cup")}
    truth = build(tmp_path, {"type": "RandomFlip", "prob": 1.0}, metainfo=classes)[0]
    assert truth["data_samples"].gt_instances.labels.tolist() == [0, 1, 0]


def test_annotations_after_a_resize_keep_the_size_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, SCENE)
    *load, annotations = LOAD
    resize = {"type": "Resize", "scale": (90, 60), "keep_ratio": True}
    packed = build(tmp_path, pipeline=[*load, resize, annotations, *PACK])[0]
    assert packed["inputs"].shape == (4, 60, 90)
    assert (packed["data_samples"].gt_instances.masks.masks == [a for a, _ in SCENE]).all()


def test_images_without_annotations_are_packed(tmp_path: Path) -> None:
    write(tmp_path, SCENE)
    packed = build(tmp_path, pipeline=[*LOAD[:2], *PACK])[0]
    assert packed["inputs"].shape == (4, HEIGHT, WIDTH)


def test_masks_of_another_size_are_named(tmp_path: Path) -> None:
    write(tmp_path, SCENE, image=coordinates()[:-2])
    np.savez(tmp_path / "scene/1.npz", depth=any_depth()[:-2])
    with pytest.raises(ValueError, match=r"\[40, 60\].*1_rgb\.png.*\[38, 60\]"):
        build(tmp_path)[0]
