"""Pictures of dense prediction: which pixel of which map gets which colour, and from a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from dense import sample
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mtl_plugins.mm.structures import FIELDS
from mtl_plugins.mm.visualization.dense import MultiTaskVisualizationHook, MultiTaskVisualizer

PALETTE = [[10, 20, 30], [40, 50, 60]]
GREY = [224, 224, 224]


def _drawn(tmp_path: Path, **maps: Any) -> np.ndarray:
    """Return the picture of maps of 2 x 2 pixels, read from its file, beside a black image."""
    made = SegDataSample()
    made.set_data({name: PixelData(data=torch.tensor(value)) for name, value in maps.items()})
    visualizer = MultiTaskVisualizer()
    visualizer.dataset_meta = {"classes": ("a", "b"), "palette": PALETTE}
    file = tmp_path / "drawn.png"
    visualizer.add_datasample("x", np.zeros((2, 2, 3), np.uint8), made, out_file=str(file))
    return cv2.imread(str(file))[..., ::-1]


def test_classes_have_the_palette_and_truth_is_above(tmp_path: Path) -> None:
    drawn = _drawn(tmp_path, gt_sem_seg=[[[0, 1], [255, 1]]], pred_sem_seg=[[[1, 1], [0, 0]]])
    assert drawn.shape == (4, 4, 3)
    assert not drawn[:2, :2].any()
    assert drawn[:2, 2:].tolist() == [PALETTE, [GREY, PALETTE[1]]]
    assert drawn[2:, 2:].tolist() == [[PALETTE[1]] * 2, [PALETTE[0]] * 2]


def test_depths_share_a_scale_and_unknown_is_grey(tmp_path: Path) -> None:
    truth, prediction = [[[1.0, 5.0], [0.0, 3.0]]], [[[5.0, 1.0], [3.0, 9.0]]]
    drawn = _drawn(tmp_path, gt_depth_map=truth, pred_depth_map=prediction)
    above, below = drawn[:2, 2:], drawn[2:, 2:]
    assert above[1, 0].tolist() == GREY
    assert np.array_equal(above[0, 0], below[0, 1]) and np.array_equal(above[0, 1], below[0, 0])
    assert np.array_equal(above[1, 1], below[1, 0])
    assert np.array_equal(below[1, 1], above[0, 1])  # beyond the scale
    blue, yellow = above[0, 0].astype(int), above[0, 1].astype(int)
    assert blue[2] > blue[1] and yellow[:2].min() > yellow[2]


def test_normals_edges_and_a_missing_truth(tmp_path: Path) -> None:
    normals = [[[1.0, 0.0], [0.0, 0.0]], [[0.0, -1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]
    drawn = _drawn(tmp_path, pred_normal_map=normals, gt_edge_map=[[[0, 1], [255, 0]]])
    assert drawn.shape == (4, 6, 3)
    assert (drawn[:2, 2:4] == 224).all()
    assert drawn[2:, 2:4].tolist() == [
        [[255, 128, 128], [128, 0, 128]],
        [[128, 128, 128], [128, 128, 255]],
    ]
    assert drawn[:2, 4:, 0].tolist() == [[0, 255], [224, 0]]


@pytest.mark.parametrize("name", ["a.png", "a.npy", "bytes.npy"])
def test_the_hook_draws_a_picture_a_sample(tmp_path: Path, name: str) -> None:
    image = np.full((32, 48, 3), 77, np.uint8)
    image[..., 0] = 200  # red
    if name.endswith(".npy"):
        np.save(tmp_path / name, image / (255.0 if name == "a.npy" else 1.0))
    else:
        cv2.imwrite(str(tmp_path / name), image[..., ::-1])
    one = sample(img_path=str(tmp_path / name))
    for field in FIELDS.values():
        one.set_data({field.prediction: one.get(field.truth).clone()})
    backends = [{"type": "LocalVisBackend"}]
    MultiTaskVisualizer.get_instance(name, vis_backends=backends, save_dir=str(tmp_path / "out"))
    hook = MultiTaskVisualizationHook(draw=True)
    hook.after_test_iter(None, 0, {}, [one])
    (file,) = (tmp_path / "out").rglob("*.png")
    drawn = cv2.imread(str(file))
    assert drawn.shape == (64, 7 * 48, 3)
    assert (drawn[:32, :48] == [77, 77, 200]).all()
    assert np.array_equal(drawn[:32, 48:], drawn[32:, 48:])
