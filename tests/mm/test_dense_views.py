"""Transforms of dense prediction against the same scene, drawn anew from the moved camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from demo_scenes.pascal import KINDS
from demo_scenes.render import Camera
from demo_scenes.scene import CLASSES, Scene, draw_scene, view

from mtl_plugins.mm.structures import IGNORED
from mtl_plugins.mm.transforms import MTRandomFlip, MTRandomScaleCrop, MTRotate

SIZE = (144, 216)
Maps = dict[str, np.ndarray]


@pytest.fixture(scope="module", params=range(3))
def scene(request: pytest.FixtureRequest) -> Scene:
    drawn = draw_scene(np.random.default_rng([7, request.param]), SIZE, KINDS)
    return view(drawn, drawn.camera)  # without noise


def labels(scene: Scene) -> Maps:
    persons = scene.semantic == CLASSES.index("person")
    return {
        "gt_seg_map": scene.semantic,
        "gt_human_parts": np.where(persons, scene.parts + 1, 0).astype(np.uint8),
        "gt_depth_map": scene.depth,
        # Axes to the right, down and towards the camera.
        "gt_normal_map": scene.normals * np.array([1, 1, -1], np.float32),
    }


def moved(transform: Any, scene: Scene, **changes: Any) -> dict[str, Any]:
    maps = {name: array.copy() for name, array in labels(scene).items()}
    start = {"img": scene.rgb[..., ::-1].copy(), "depth_kind": "metric", **maps, **changes}
    return transform.transform(start)


def inside(scene: Scene, margin: int = 2) -> np.ndarray:
    """Pixels further than ``margin`` from the border of the image, of a surface or of its faces."""
    surface = scene.semantic.astype(np.float32) * 64 + scene.parts
    for number, thing in enumerate(scene.objects, start=1):
        surface[thing.visible_mask] += 4096 * number
    low, high = surroundings(surface, 2 * margin + 1)
    within = np.zeros(surface.shape, bool)
    within[margin:-margin, margin:-margin] = True
    # Between two faces of a box, the interpolated normal is that of neither.
    flattest, steepest = surroundings(scene.normals, 2 * margin + 1)
    return within & (low == high) & (steepest - flattest < 0.7).all(-1)


def surroundings(array: np.ndarray, width: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest value of the pixels around each pixel."""
    kernel = np.ones((width, width), np.uint8)
    return cv2.erode(array, kernel), cv2.dilate(array, kernel)


def agree(found: Maps, drawn: Scene, where: np.ndarray) -> None:
    """Compare labels that were moved by nearest pixels with those of a drawn scene.

    A label is that of a point up to a pixel away, so it lies between the least and the greatest
    of the pixels around; on one surface, classes are equal and planes have one normal.
    """
    # Curved surfaces have extremes between the pixels.
    slack = {"gt_depth_map": 5e-4, "gt_normal_map": 2e-3}
    for name, array in labels(drawn).items():
        low, high = surroundings(array)
        within = (found[name] >= low - slack.get(name, 0)) & (
            found[name] <= high + slack.get(name, 0)
        )
        assert within[where].all(), name
    for name in ("wall-brick", "wall-tile", "floor-wood"):
        plane = where & (drawn.semantic == CLASSES.index(name))
        normals = labels(drawn)["gt_normal_map"]
        np.testing.assert_allclose(found["gt_normal_map"][plane], normals[plane], atol=1e-5)


@pytest.mark.parametrize(
    ("direction", "signs"),
    [("horizontal", (-1, 1, 1)), ("vertical", (1, -1, 1)), ("diagonal", (-1, -1, 1))],
)
def test_a_flip_is_the_view_of_the_mirrored_camera(
    scene: Scene, direction: str, signs: Sequence[int]
) -> None:
    found = moved(MTRandomFlip(prob=1.0, direction=direction), scene)
    drawn = view(scene, replace(scene.camera, rotation=scene.camera.rotation * signs))
    assert np.abs(found["img"][..., ::-1].astype(int) - drawn.rgb).max() <= 1
    for name, array in labels(drawn).items():
        np.testing.assert_allclose(found[name], array, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("angle", "scale"), [(17.0, 1.0), (-40.0, 1.0), (0.0, 1.25), (12.0, 0.8), (-20.0, 1.25)]
)
def test_a_rotation_is_the_view_of_the_rolled_camera_with_another_lens(
    scene: Scene, angle: float, scale: float
) -> None:
    found = moved(MTRotate((angle, angle), (scale, scale)), scene)
    sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))
    right, down, forward = scene.camera.rotation.T
    turned = np.stack([cosine * right + sine * down, cosine * down - sine * right, forward], -1)
    drawn = view(scene, replace(scene.camera, rotation=turned, focal=scale * scene.camera.focal))

    known = found["gt_seg_map"] != IGNORED
    for name in ("gt_human_parts", "gt_depth_map", "gt_normal_map"):
        unknown = found[name] == (IGNORED if name == "gt_human_parts" else 0)
        unknown = unknown.all(-1) if unknown.ndim == 3 else unknown
        np.testing.assert_array_equal(~unknown, known)
    # The depth that a lens of another focal length sees stays; the transform's depth is that at
    # which a thing looks as large without it.
    found["gt_depth_map"] *= scale
    where = known & inside(drawn)
    assert where.sum() > 0.5 * known.sum()
    assert found["gt_human_parts"][where].any()
    agree(found, drawn, where)


def test_a_zoom_into_the_centre_is_the_view_through_a_longer_lens(scene: Scene) -> None:
    found = moved(MTRandomScaleCrop((1.5,), crop="centre"), scene)
    drawn = view(scene, replace(scene.camera, focal=1.5 * scene.camera.focal))
    found["gt_depth_map"] *= 1.5  # see above
    where = inside(drawn)
    assert where.mean() > 0.5
    assert found["gt_human_parts"][where].any()
    agree(found, drawn, where)


def test_a_zoom_anywhere_is_a_part_of_the_view_with_more_pixels(scene: Scene) -> None:
    np.random.seed(len(scene.objects))
    at = np.stack([*np.indices(SIZE), np.zeros(SIZE)], -1).astype(np.float32)
    disparity = scene.camera.focal / scene.depth
    found = moved(MTRandomScaleCrop((2.0,)), scene, img=at)
    again = Camera((2 * SIZE[0], 2 * SIZE[1]), 2 * scene.camera.focal, *_pose(scene))
    large = view(scene, again)
    # The image tells from where each pixel is.
    middle = np.array([SIZE[0] // 2, SIZE[1] // 2])
    first = found["img"][middle[0], middle[1], :2] - ((middle + 0.5) / 2 - 0.5)
    top, left = np.round(2 * first).astype(int)
    part = slice(top, top + SIZE[0]), slice(left, left + SIZE[1])
    drawn = replace(
        large,
        **{name: getattr(large, name)[part] for name in ("depth", "normals", "semantic", "parts")},
        objects=(),
    )
    where = inside(large)[part]
    assert where.mean() > 0.5
    found["gt_depth_map"] *= 2
    agree(found, drawn, where)

    # A disparity in pixels is what the zoomed camera sees, as it is.
    np.random.seed(len(scene.objects))
    found = moved(MTRandomScaleCrop((2.0,)), scene, gt_depth_map=disparity, depth_kind="inverse")
    low, high = surroundings(again.focal / drawn.depth)
    off = np.maximum(low - found["gt_depth_map"], found["gt_depth_map"] - high)
    assert off[where].max() < 1e-3 * high.max()


def _pose(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    return scene.camera.position, scene.camera.rotation
