"""AmodalVisualizer: hidden parts are outlined, visible ones filled, occluded objects marked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData
from PIL import Image

from mtl_plugins.mm.visualization.amodal import AmodalVisualizer

WIDTH, HEIGHT = 200, 120
GREY = 100


def masks(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Filled boxes: x, y, width, height."""
    found = np.zeros((len(boxes), HEIGHT, WIDTH), np.uint8)
    for mask, (x, y, width, height) in zip(found, boxes, strict=True):
        mask[y : y + height, x : x + width] = 1
    return found


# Of the second object the right half is hidden, by nothing that would be drawn there.
AMODAL = masks((20, 30, 60, 60), (110, 30, 60, 60))
VISIBLE = masks((20, 30, 60, 60), (110, 30, 30, 60))
HIDDEN_INSIDE = np.s_[70:85, 145:165]


def truth() -> InstanceData:
    """As it comes out of the pipeline and the preprocessor."""
    return InstanceData(
        bboxes=torch.tensor([[20.0, 30, 80, 90], [110, 30, 170, 90]]),
        labels=torch.tensor([0, 0]),
        masks=BitmapMasks(AMODAL, HEIGHT, WIDTH),
        visible_masks=BitmapMasks(VISIBLE, HEIGHT, WIDTH),
        occluded=torch.tensor([0, 1]),
    )


def predictions() -> InstanceData:
    return InstanceData(
        bboxes=truth().bboxes,
        labels=torch.tensor([0, 0]),
        scores=torch.tensor([0.9, 0.8]),
        masks=torch.from_numpy(AMODAL).bool(),
        visible_masks=torch.from_numpy(VISIBLE).bool(),
        occluded=torch.tensor([0, 1]),
        occlusion_scores=torch.tensor([0.02, 0.87]),
    )


@pytest.fixture
def visualizer() -> AmodalVisualizer:
    return AmodalVisualizer(line_width=2)


def draw(visualizer: DetLocalVisualizer, **options: Any) -> np.ndarray:
    """Changes to a grey image, ``[H, W, 3]``; of truth and predictions side by side if both."""
    image = np.full((HEIGHT, WIDTH, 3), GREY, np.uint8)
    threshold = options.pop("pred_score_thr", 0.3)
    sample = DetDataSample(**options)
    visualizer.add_datasample(
        "it",
        image,
        sample,
        draw_gt="gt_instances" in options,
        draw_pred="pred_instances" in options,
        pred_score_thr=threshold,
    )
    return visualizer.get_image().astype(int) - GREY


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written on pictures; and then nothing is."""
    written: list[str] = []
    monkeypatch.setattr(AmodalVisualizer, "draw_texts", lambda self, t, *_, **__: written.append(t))
    return written


def edge(mask: np.ndarray) -> np.ndarray:
    """The outermost pixels of a box's mask."""
    inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return (mask > 0) & ~np.pad(inner > 0, 1)


def test_visible_masks_are_filled_and_amodal_ones_outlined(
    visualizer: AmodalVisualizer, texts: list[str]
) -> None:
    changed = np.abs(draw(visualizer, gt_instances=truth())).sum(-1) > 30
    near = np.pad(AMODAL.any(0), 3)
    near = np.any([near[y : y + HEIGHT, x : x + WIDTH] for y in (0, 6) for x in (0, 6)], 0)
    assert changed[VISIBLE.any(0)].all()
    assert not changed[~near].any()
    assert not changed[HIDDEN_INSIDE].any()
    # Around the hidden part, too, some of the outline is there, and it is not whole.
    hidden_edge = edge(AMODAL[1])
    hidden_edge[:, :145] = False
    assert 0.3 < changed[hidden_edge].mean() < 0.95


def test_each_object_has_its_own_colour(visualizer: AmodalVisualizer, texts: list[str]) -> None:
    change = draw(visualizer, gt_instances=truth())
    first, second = change[60, 50], change[60, 120]
    assert np.abs(first - second).max() > 30
    np.testing.assert_array_equal(change[45:75, 35:65], np.broadcast_to(first, (30, 30, 3)))
    # The outline has the colour of what it goes around, and more of it.
    hidden_edge = edge(AMODAL[1])
    hidden_edge[:, :145] = False
    strongest = change[hidden_edge][np.abs(change[hidden_edge]).sum(-1).argmax()]
    cosine = strongest @ second / np.linalg.norm(strongest) / np.linalg.norm(second)
    assert cosine > 0.98
    assert np.linalg.norm(strongest) > 1.5 * np.linalg.norm(second)


def test_occluded_objects_are_marked(visualizer: AmodalVisualizer, texts: list[str]) -> None:
    draw(visualizer, gt_instances=truth())
    assert texts == ["occluded"]
    texts.clear()
    draw(visualizer, pred_instances=predictions())
    assert texts == ["occluded 0.87"]


def test_an_object_that_is_not_occluded_has_a_whole_outline(
    visualizer: AmodalVisualizer, texts: list[str]
) -> None:
    free = truth()
    free.occluded = torch.tensor([0, 0])
    changed = np.abs(draw(visualizer, gt_instances=free)).sum(-1) > 30
    assert changed[edge(AMODAL[1])].all()
    assert texts == []


def test_the_label_lies_at_the_top(visualizer: AmodalVisualizer) -> None:
    change = np.abs(draw(visualizer, gt_instances=truth())).sum(-1)
    assert (change[25:35, 120:160] > 150).mean() > 0.3


def test_unlikely_predictions_are_not_drawn(visualizer: AmodalVisualizer, texts: list[str]) -> None:
    change = draw(visualizer, pred_instances=predictions(), pred_score_thr=0.85)
    assert np.abs(change[VISIBLE[0] > 0]).sum(-1).min() > 30
    assert not change[:, 100:].any()
    assert texts == []


def test_nothing_to_draw(visualizer: AmodalVisualizer) -> None:
    assert not draw(visualizer, gt_instances=truth()[:0], pred_instances=predictions()[:0]).any()
    nowhere = predictions()
    nowhere.masks, nowhere.visible_masks = torch.zeros(2, 2, HEIGHT, WIDTH, dtype=torch.bool)
    assert not draw(visualizer, pred_instances=nowhere).any()


def test_without_visible_masks_it_is_mmdetections(visualizer: AmodalVisualizer) -> None:
    plain = predictions()
    del plain.visible_masks
    np.random.seed(0)
    found = draw(visualizer, pred_instances=plain)
    np.random.seed(0)
    expected = draw(DetLocalVisualizer(line_width=2, alpha=0.5), pred_instances=plain)
    assert expected.any()
    np.testing.assert_array_equal(found, expected)


def test_by_mmdetections_hook(tmp_path: Path) -> None:
    scenes = [tmp_path / "scene1/1.png", tmp_path / "scene2/1.png"]
    for path in scenes:
        path.parent.mkdir()
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), GREY, np.uint8)).save(path)
    AmodalVisualizer.get_instance("amodal_hook", line_width=2)
    hook = DetVisualizationHook(draw=True, test_out_dir="drawn")
    hook._visualizer = AmodalVisualizer.get_instance("amodal_hook")
    runner = SimpleNamespace(work_dir=str(tmp_path), timestamp="now")
    for path in scenes:
        sample = DetDataSample(gt_instances=truth(), pred_instances=predictions())
        sample.set_metainfo({"img_path": str(path)})
        hook.after_test_iter(runner, 0, {}, [sample])
    out = tmp_path / "now/drawn"
    assert sorted(path.name for path in out.iterdir()) == ["scene1_1.png", "scene2_1.png"]
    drawn = np.asarray(Image.open(out / "scene2_1.png"), int) - GREY
    assert drawn.shape == (HEIGHT, 2 * WIDTH, 3)
    # Truth to the left, predictions to the right; they differ in their labels alone.
    left, right = drawn[:, :WIDTH], drawn[:, WIDTH:]
    np.testing.assert_array_equal(left[45:], right[45:])
    assert (left[:45] != right[:45]).any()
