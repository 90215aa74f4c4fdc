"""Transforms of dense labels, against plain indexing, a plane that a camera sees, and mmseg."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import mmcv.transforms
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmseg.datasets import transforms as mmseg_transforms
from mmseg.utils import stack_batch

from mtl_plugins.mm.structures import FIELDS
from mtl_plugins.mm.transforms import (
    MTPad,
    MTRandomCrop,
    MTRandomFlip,
    MTRandomScaleCrop,
    MTResize,
    MTRotate,
    PackMultiTaskInputs,
)

HEIGHT, WIDTH = 24, 36
FOCAL = 40.0
KEYS = [field.result for field in FIELDS.values()]
Results = dict[str, Any]


# --- a plane before a pin-hole camera -----------------------------------------------------------


def camera(zoom: float = 1.0, left: float = 0.0, top: float = 0.0) -> np.ndarray:
    """Intrinsics whose principal point is the image's centre, of a part of the image enlarged."""
    u, v = ((WIDTH - 1) / 2 - left + 0.5) * zoom - 0.5, ((HEIGHT - 1) / 2 - top + 0.5) * zoom - 0.5
    return np.array([[zoom * FOCAL, 0, u], [0, zoom * FOCAL, v], [0, 0, 1]])


def render(
    normal: np.ndarray, intrinsics: np.ndarray, du: float = 0.0, dv: float = 0.0
) -> np.ndarray:
    """Depth of the plane n.X = -3 at each pixel, or beside it by (du, dv)."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([u + du, v + dv, np.ones_like(u)], -1) @ np.linalg.inv(intrinsics).T
    return -3 / (rays @ normal)


def bounds(
    normal: np.ndarray, intrinsics: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest depth near each pixel; 1 / depth is linear, so extremes lie in corners."""
    corners = [
        render(normal, intrinsics, x, y) for x in (-radius, radius) for y in (-radius, radius)
    ]
    return np.min(corners, 0) * (1 - 1e-5), np.max(corners, 0) * (1 + 1e-5)


def seen(normal: np.ndarray) -> Results:
    """The plane's labels; rows and columns are written in the maps of classes."""
    v, u = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    image = np.stack([u, v, u + v], -1)
    return {
        "img": image,
        "img_shape": (HEIGHT, WIDTH),
        "ori_shape": (HEIGHT, WIDTH),
        "gt_seg_map": v,
        "gt_human_parts": u,
        "gt_edge_map": (u + v) % 2,
        "gt_sal_map": u % 2,
        "gt_depth_map": render(normal, camera()).astype(np.float32),
        "gt_normal_map": np.broadcast_to(normal, (HEIGHT, WIDTH, 3)).astype(np.float32),
        "depth_kind": "metric",
    }


def source(found: Results, of: Results, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check that every label was taken from the one pixel that the maps of classes tell."""
    rows, columns = found["gt_seg_map"][known], found["gt_human_parts"][known]
    for key in ("gt_edge_map", "gt_sal_map"):
        np.testing.assert_array_equal(found[key][known], of[key][rows, columns])
    return rows, columns


slopes = st.tuples(st.floats(-0.7, 0.7), st.floats(-0.7, 0.7))


def normal_of(slope: tuple[float, float]) -> np.ndarray:
    vector = np.array([*slope, -1.0])  # towards the camera, which looks along z
    return vector / np.linalg.norm(vector)


@settings(max_examples=20, deadline=None)
@given(slopes, st.sampled_from(["horizontal", "vertical", "diagonal"]))
def test_mirrored_camera(slope: tuple[float, float], direction: str) -> None:
    normal = normal_of(slope)
    mirror = np.ones(3)
    mirror[{"horizontal": [0], "vertical": [1], "diagonal": [0, 1]}[direction]] = -1
    found = MTRandomFlip(1.0, direction)(seen(normal))
    np.testing.assert_allclose(found["gt_depth_map"], render(normal * mirror, camera()), rtol=1e-5)
    assert np.allclose(found["gt_normal_map"], normal * mirror)
    source(found, seen(normal), np.ones((HEIGHT, WIDTH), bool))
    assert found["flip"] and found["flip_direction"] == direction


@settings(max_examples=20, deadline=None)
@given(slopes, st.sampled_from([1.0, 1.2, 1.5, 2.0]), st.sampled_from(["centre", "random"]))
def test_zoomed_camera(slope: tuple[float, float], scale: float, crop: str) -> None:
    normal = normal_of(slope)
    before = seen(normal)
    found = MTRandomScaleCrop((scale,), crop=crop)(seen(normal))
    rows, columns = source(found, before, np.ones((HEIGHT, WIDTH), bool))
    assert found["img"].shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(
        found["gt_depth_map"].ravel() * scale, before["gt_depth_map"][rows, columns], rtol=1e-5
    )
    left, top = int(columns.min()), int(rows.min())
    if crop == "centre":
        assert (left, top) == (
            (WIDTH - int(WIDTH / scale)) // 2,
            (HEIGHT - int(HEIGHT / scale)) // 2,
        )
    low, high = bounds(normal, camera(scale, left, top), radius=scale / 2 + 0.01)
    depth = found["gt_depth_map"] * scale
    assert (low <= depth).all() and (depth <= high).all()
    np.testing.assert_allclose(
        found["gt_normal_map"], np.broadcast_to(normal, depth.shape + (3,)), atol=1e-5
    )
    # Bilinear colours are the columns and rows between those of nearest labels.
    assert np.abs(found["img"][..., 0].astype(int) - found["gt_human_parts"]).max() <= 1
    assert np.abs(found["img"][..., 1].astype(int) - found["gt_seg_map"]).max() <= 1


@settings(max_examples=20, deadline=None)
@given(slopes, st.floats(-40, 40), st.floats(0.7, 1.4))
def test_rolled_camera(slope: tuple[float, float], degrees: float, scale: float) -> None:
    normal = normal_of(slope)
    found = MTRotate((degrees, degrees), (scale, scale))(seen(normal))
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    # Counter-clockwise on the screen, where y points down: (1, 0) becomes (cosine, -sine).
    rolled = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]]) @ normal
    known = found["gt_depth_map"] != 0
    source(found, seen(normal), known)
    u0, v0 = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    intrinsics = np.array([[scale * FOCAL, 0, u0], [0, scale * FOCAL, v0], [0, 0, 1]])
    low, high = bounds(rolled, intrinsics, radius=scale * 0.75 + 0.05)
    depth = found["gt_depth_map"] * scale
    assert (low[known] <= depth[known]).all() and (depth[known] <= high[known]).all()
    assert np.allclose(found["gt_normal_map"][known], rolled, atol=1e-4)
    for name, field in FIELDS.items():
        assert (found[field.result][~known] == field.unknown).all(), name
    assert known[HEIGHT // 2, WIDTH // 2] and (abs(degrees) < 5 or scale > 1.1 or not known.all())


def test_inverse_depth() -> None:
    """Disparity is focal length times baseline by depth, so that a zoom multiplies it."""
    normal = normal_of((0.3, -0.2))
    before = {**seen(normal), "depth_kind": "inverse"}
    before["gt_depth_map"] = (FOCAL * 0.22 / before["gt_depth_map"]).astype(np.float32)
    zoomed = MTRandomScaleCrop((2.0,), crop="centre")(dict(before))
    low, high = bounds(normal, camera(2, WIDTH // 4, HEIGHT // 4), radius=1.01)
    metric = 2 * FOCAL * 0.22 / zoomed["gt_depth_map"]
    assert (low <= metric).all() and (metric <= high).all()

    published = MTRandomScaleCrop((2.0,), crop="centre", depth="as_published")(dict(before))
    np.testing.assert_allclose(published["gt_depth_map"] * 4, zoomed["gt_depth_map"], rtol=1e-6)
    with pytest.raises(ValueError, match="has depth='metric', the data set's depth is inverse"):
        MTRandomScaleCrop((2.0,), depth="metric")(dict(before))
    del before["depth_kind"]
    with pytest.raises(ValueError, match="of unknown kind"):
        MTRandomScaleCrop((2.0,))(before)


def test_a_range_of_zooms() -> None:
    """Factors fill the range evenly, as depth tells."""
    np.random.seed(0)
    before = seen(normal_of((0.0, 0.0)))["gt_depth_map"][0, 0]
    zoom = MTRandomScaleCrop(scale_range=(1.0, 2.0))
    depths = [zoom(seen(normal_of((0.0, 0.0))))["gt_depth_map"][0, 0] for _ in range(200)]
    factors = np.sort(before / np.array(depths))
    assert np.abs(factors - np.linspace(1, 2, 200)).max() < 0.12
    turn = MTRotate(0.0, (0.5, 2.0))
    depths = [turn(seen(normal_of((0.0, 0.0))))["gt_depth_map"][12, 18] for _ in range(200)]
    factors = np.sort(before / np.array(depths))
    assert np.abs(factors - np.linspace(0.5, 2, 200)).max() < 0.18


# --- plain indexing -----------------------------------------------------------------------------


def test_unknown_stays_unknown_and_normals_stay_unit_vectors() -> None:
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    vectors[draw.random((HEIGHT, WIDTH)) < 0.3] = 0
    for transform in (
        MTResize((50, 31)),
        MTRandomScaleCrop((1.7,)),
        MTRotate((17, 17), (1.2, 1.2)),
    ):
        before = {**seen(normal_of((0, 0))), "gt_normal_map": vectors}
        found = transform(before)
        length = np.linalg.norm(found["gt_normal_map"], axis=2)
        known = length > 0
        np.testing.assert_allclose(length[known], 1, atol=1e-5)
        inside = found["gt_seg_map"] != 255
        taken = vectors[found["gt_seg_map"][inside], found["gt_human_parts"][inside]].any(1)
        assert not (known[inside] & ~taken).any()
        assert (known[inside] == taken).mean() > 0.97  # opposite vectors may cancel


def test_resize_leaves_depth() -> None:
    before = seen(normal_of((0.2, 0.1)))
    found = MTResize((2 * WIDTH, 3 * HEIGHT))(dict(before))
    for key in ("gt_depth_map", "gt_seg_map", "gt_human_parts", "gt_edge_map", "gt_sal_map"):
        np.testing.assert_array_equal(found[key], before[key].repeat(3, 0).repeat(2, 1))
    assert found["img_shape"] == (3 * HEIGHT, 2 * WIDTH) and found["scale_factor"] == (2, 3)


@pytest.mark.parametrize("ratio", [1.0, 0.75])
def test_crop_and_pad(ratio: float) -> None:
    before = seen(normal_of((0.2, 0.1)))
    found = MTRandomCrop([10, 14], cat_max_ratio=ratio)(dict(before))
    rows, columns = found["gt_seg_map"], found["gt_human_parts"]
    for key in ["img", *KEYS]:
        assert found[key].shape[:2] == (10, 14)
        np.testing.assert_array_equal(found[key], before[key][rows, columns])
    padded = MTPad((12, 15))(dict(found))
    for field in FIELDS.values():
        label = padded[field.result]
        assert label.shape[:2] == (12, 15) and label.dtype == before[field.result].dtype
        np.testing.assert_array_equal(label[:10, :14], found[field.result])
        assert (label[10:] == field.unknown).all() and (label[:, 14:] == field.unknown).all()


def test_a_missing_label_stays_missing() -> None:
    steps = [MTRandomFlip(1.0), MTRandomScaleCrop(), MTRotate(10), MTResize((9, 9))]
    results = {key: seen(normal_of((0, 0)))[key] for key in ("img", "gt_edge_map", "ori_shape")}
    for step in [*steps, MTRandomCrop(5, cat_max_ratio=0.5), MTPad((7, 7))]:
        results = step(results)
    assert [key for key in results if key in KEYS] == ["gt_edge_map"]
    sample = PackMultiTaskInputs()(results)["data_samples"]
    assert "gt_edge_map" in sample and "gt_sem_seg" not in sample


def test_bicubic_overshoot_is_clipped() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 10, np.uint8)
    image[:, WIDTH // 2 :] = 250
    for kind in (np.uint8, np.float32):
        results = {"img": image.astype(kind), "ori_shape": (HEIGHT, WIDTH)}
        found = MTResize((100, 50), interpolation="bicubic")(results)["img"]
        assert found.dtype == kind and found.max() == 250
        assert (np.diff(found[25, :, 0].astype(float))[40:60] >= -8).all()  # nothing wraps around


# --- faults of MMSegmentation that ours lack ----------------------------------------------------


def as_fields(results: Results) -> Results:
    """Tell MMSegmentation of every label."""
    return {**results, "seg_fields": list(KEYS)}


def test_flip_beside_mmseg() -> None:
    normal = np.array([0.6, 0.0, -0.8])
    before = seen(normal)
    before["gt_depth_map"][0, :2] = 1, 5
    pairs = [(1, 5)]
    theirs = mmseg_transforms.RandomFlip(1.0, swap_seg_labels=pairs)(as_fields(deepcopy(before)))
    assert np.allclose(theirs["gt_normal_map"][0, 0, 0], 0.6)  # must be -0.6
    assert theirs["gt_depth_map"][0, -2:].tolist() == [1, 5]  # swapped, being labels' numbers
    ours = MTRandomFlip(1.0, swap_seg_labels={"human_parts": pairs})(dict(before))
    assert np.allclose(ours["gt_normal_map"][..., 0], -0.6)
    assert ours["gt_depth_map"][0, -2:].tolist() == [5, 1]
    np.testing.assert_array_equal(ours["gt_seg_map"], before["gt_seg_map"][:, ::-1])
    parts = before["gt_human_parts"][:, ::-1].copy()
    parts[:, -2], parts[:, -6] = 5, 1
    np.testing.assert_array_equal(ours["gt_human_parts"], parts)
    with pytest.raises(ValueError, match=r"swap_seg_labels: .*sem_seg, human_parts"):
        MTRandomFlip(1.0, swap_seg_labels={"depth": pairs})
    with pytest.raises(ValueError, match="swap_seg_labels"):
        MTRandomFlip(1.0, swap_seg_labels=pairs)  # type: ignore[arg-type]


def test_zoom_beside_mmseg() -> None:
    before = seen(normal_of((0.2, 0.1)))
    theirs = mmseg_transforms.Resize(scale=(2 * WIDTH, 2 * HEIGHT))(as_fields(dict(before)))
    theirs = mmcv.transforms.CenterCrop((WIDTH, HEIGHT))(theirs)
    assert theirs["gt_depth_map"].max() > 0.9 * before["gt_depth_map"].max()  # as far away
    ours = MTRandomScaleCrop((2.0,), crop="centre")(dict(before))
    assert np.median(ours["gt_depth_map"]) == pytest.approx(
        np.median(before["gt_depth_map"]) / 2, rel=0.05
    )


def test_rotation_beside_mmseg() -> None:
    normal = np.array([0.6, 0.0, -0.8])
    theirs = mmseg_transforms.RandomRotate(1.0, (90, 90))(as_fields(seen(normal)))
    assert (theirs["gt_depth_map"] == 255).any()  # a depth of 255 m
    assert (theirs["gt_normal_map"] == [255, 0, 0]).all(2).any()
    assert np.isclose(theirs["gt_normal_map"][12, 18, 0], 0.6)  # points to the side as before
    ours = MTRotate((90, 90))(seen(normal))
    assert ours["gt_depth_map"].max() < 10 and np.abs(ours["gt_normal_map"]).max() <= 1
    assert (ours["gt_depth_map"] == 0).any() and (ours["gt_seg_map"] == 255).any()
    # Counter-clockwise, the right becomes the top, where y is negative.
    assert np.allclose(ours["gt_normal_map"][12, 18], [0, -0.6, -0.8], atol=1e-5)


def test_pad_beside_mmcv() -> None:
    before = seen(normal_of((0, 0)))
    theirs = mmcv.transforms.Pad(size=(40, 30))(as_fields(dict(before)))
    assert theirs["img"].shape[:2] == (30, 40)
    assert theirs["gt_depth_map"].shape == theirs["gt_normal_map"].shape[:2] == (HEIGHT, WIDTH)
    with pytest.raises(
        ValueError, match=r"human_parts .* has the size 36 x 24, the image .* 40 x 30"
    ):
        PackMultiTaskInputs()(dict(theirs))
    ours = MTPad((30, 40))(dict(before))
    assert {ours[key].shape[:2] for key in ["img", *KEYS]} == {(30, 40)}


def test_packing_and_batches_beside_mmseg() -> None:
    before = seen(normal_of((0.2, 0.1)))
    theirs = mmseg_transforms.PackSegInputs()(dict(before))["data_samples"]
    assert "gt_normal_map" not in theirs and "gt_human_parts" not in theirs
    ours = PackMultiTaskInputs()(dict(before))
    for field in FIELDS.values():
        data = ours["data_samples"].get(field.truth).data
        assert tuple(data.shape) == (field.channels, HEIGHT, WIDTH)
        plain = data.permute(1, 2, 0) if field.kind == "normals" else data[0]
        np.testing.assert_array_equal(plain.numpy(), before[field.result])
    assert torch.equal(ours["inputs"], torch.from_numpy(before["img"]).permute(2, 0, 1))

    # In a batch with a larger image, MMSegmentation pads depth with 255, and normals not at all.
    sample = [
        PackMultiTaskInputs()(dict(before)),
        PackMultiTaskInputs()(MTPad((30, 40))(dict(before))),
    ]
    _, batch = stack_batch(
        [one["inputs"].float() for one in sample],
        [one["data_samples"] for one in sample],
        size_divisor=1,
    )
    assert batch[0].gt_depth_map.data.max() == 255
    assert batch[0].get("gt_normal_map").data.shape[1:] == (HEIGHT, WIDTH)
    # Images of one size, as MTPad makes them, are left alone.
    padded = [PackMultiTaskInputs()(MTPad((30, 40))(dict(before))) for _ in range(2)]
    _, batch = stack_batch(
        [one["inputs"].float() for one in padded],
        [one["data_samples"] for one in padded],
        size_divisor=1,
    )
    for sample_ in batch:
        for field in FIELDS.values():
            data = sample_.get(field.truth).data
            assert tuple(data.shape[1:]) == (30, 40) and (data[:, HEIGHT:] == field.unknown).all()


def test_colour_jitter_of_floating_point_images_is_refused() -> None:
    results = seen(normal_of((0, 0)))
    results["img"] = np.random.default_rng(0).random((HEIGHT, WIDTH, 3), np.float32)
    results["img_dtype"] = results["img"].dtype
    PackMultiTaskInputs()(dict(results))
    np.random.seed(0)
    jitter = mmseg_transforms.PhotoMetricDistortion()
    with pytest.raises(ValueError, match="floating point colours"):
        for _ in range(20):  # each of its parts is drawn
            PackMultiTaskInputs()(jitter(dict(results)))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: MTRandomScaleCrop((0.5, 1)), "at least 1"),
        (lambda: MTRandomScaleCrop(crop="middle"), "crop: 'middle' is not"),
        (lambda: MTRandomScaleCrop(depth="metres"), "depth: 'metres' is not"),
        (lambda: MTResize((3, 3), interpolation="cubic"), "interpolation: 'cubic' is not"),
        (lambda: MTRotate(3, (0, 1)), "scales above 0"),
    ],
)
def test_wrong_options(build: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()
