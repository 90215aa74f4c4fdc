"""AmodalMetric against cases whose answers are known, and against brute force."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import METRICS
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from pycocotools import mask as coco_mask
from two_processes import results_of_two, work

from mtl_plugins.mm.evaluation import AmodalMetric

Json = dict[str, Any]

SIZE = 40
COLUMNS = ["bbox_mAP", "bbox_mAR", "visible_mAP", "visible_mAR", "amodal_mAP", "amodal_mAR"]
OCCLUSION = ["occlusion_accuracy", "occlusion_F1", "amodal_IoU_occluded", "visible_IoU_occluded"]


@dataclass
class Thing:
    """An object, or what is predicted for one.

    Attributes:
        amodal: bool ``[H, W]``.
        visible: bool ``[H, W]``.
        occluded: the label that is predicted; that of the truth follows from the masks.
        score: of the prediction.
    """

    amodal: np.ndarray
    visible: np.ndarray
    occluded: bool = False
    score: float = 0.9


def bar(x: int, y: int, width: int, height: int = 10, hidden: int = 0) -> Thing:
    """A rectangle of which ``hidden`` columns at the right are hidden; labelled as it is."""
    amodal, visible = np.zeros((2, SIZE, SIZE), bool)
    amodal[y : y + height, x : x + width] = True
    visible[y : y + height, x : x + width - hidden] = True
    return Thing(amodal, visible, hidden / width >= 0.05)


def rle(mask: np.ndarray) -> Json:
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {**encoded, "counts": encoded["counts"].decode()}


def write(path: Path, scenes: Sequence[Sequence[Thing]]) -> str:
    ids = range(1, len(scenes) + 1)
    things = [(image, thing) for image, scene in zip(ids, scenes, strict=True) for thing in scene]
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": 1,
            "iscrowd": 0,
            "bbox": coco_mask.toBbox(rle(thing.amodal)).tolist(),
            "area": int(thing.amodal.sum()),
            "segmentation": rle(thing.amodal),
            "visible_mask": rle(thing.visible),
            "occluded_rate": (thing.amodal & ~thing.visible).sum() / thing.amodal.sum(),
        }
        for number, (image, thing) in enumerate(things, start=1)
    ]
    images = [
        {"id": i, "file_name": f"{i}", "depth_file_name": f"{i}", "width": SIZE, "height": SIZE}
        for i in ids
    ]
    categories = [{"id": 1, "name": "object"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return str(path)


def sample(image: int, things: Sequence[Thing]) -> Json:
    """What a model answers for an image."""

    def masks(name: str) -> torch.Tensor:
        each = [getattr(thing, name) for thing in things]
        return torch.from_numpy(np.array(each, bool).reshape(-1, SIZE, SIZE))

    xywh = torch.tensor([coco_mask.toBbox(rle(thing.amodal)) for thing in things]).reshape(-1, 4)
    predicted = {
        "bboxes": torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1).float(),
        "scores": torch.tensor([thing.score for thing in things]),
        "labels": torch.zeros(len(things), dtype=torch.long),
        "masks": masks("amodal"),
        "visible_masks": masks("visible"),
        "occluded": torch.tensor([thing.occluded for thing in things], dtype=torch.long),
        "occlusion_scores": torch.zeros(len(things)),
    }
    return {"img_id": image, "ori_shape": (SIZE, SIZE), "pred_instances": predicted}


def measure(
    truth: Sequence[Sequence[Thing]], predicted: Sequence[Sequence[Thing]], **options: Any
) -> Json:
    with TemporaryDirectory() as folder:
        ann_file = write(Path(folder) / "val.json", truth)
        config = {"type": "AmodalMetric", "ann_file": ann_file, "prefix": "it", **options}
        with DefaultScope.overwrite_default_scope("mmdet"):  # not that of another test's runner
            metric = METRICS.build(config)
        metric.dataset_meta = {"classes": ("object",)}
        for image, things in enumerate(predicted, start=1):
            metric.process({}, [sample(image, things)])
        found = metric.evaluate(len(predicted))
    assert list(found) == [f"it/{name}" for name in COLUMNS + OCCLUSION]
    return {name.removeprefix("it/"): value for name, value in found.items()}


SCENES = [
    [bar(2, 2, 20), bar(2, 20, 20, hidden=8)],
    [bar(10, 5, 20, hidden=4), bar(5, 25, 10), bar(25, 25, 10)],
    [],
]


# --- known answers ------------------------------------------------------------------------------


def test_the_truth_is_perfect() -> None:
    found = measure(SCENES, SCENES)
    # What the visible masks of the two occluded objects cover.
    assert found.pop("visible_IoU_occluded") == pytest.approx((0.6 + 0.8) / 2)
    assert set(found.values()) == {1.0}


def test_visible_masks_as_the_amodal_answer_lower_the_amodal_columns_alone() -> None:
    striped = bar(2, 20, 25, height=4)
    # Hidden in the middle, so that the boxes stay right: an IoU of 0.64.
    striped.visible[20:24, 10:19] = False
    striped.occluded = True
    truth = [[bar(2, 2, 20), striped]]
    answer = [bar(2, 2, 20), replace(striped, amodal=striped.visible, score=0.8)]
    found = measure(truth, [answer])
    # At three of ten IoUs both are right, at seven only the first: up to a recall of 0.5 of COCO's
    # 101 points.
    assert found.pop("amodal_mAP") == pytest.approx((3 + 7 * 51 / 101) / 10, abs=5e-4)
    assert found.pop("amodal_mAR") == pytest.approx((3 + 7 / 2) / 10, abs=5e-4)
    assert found.pop("amodal_IoU_occluded") == pytest.approx(0.64)
    assert found.pop("visible_IoU_occluded") == pytest.approx(0.64)
    assert set(found.values()) == {1.0}


def test_wrong_visible_masks_lower_the_visible_columns_alone() -> None:
    answer = [[replace(thing, visible=thing.amodal) for thing in scene] for scene in SCENES]
    found = measure(SCENES, answer)
    # Two of the five have IoUs of 0.6 and 0.8.
    assert found.pop("visible_mAR") == pytest.approx((3 * 10 + 3 + 7) / 5 / 10, abs=5e-4)
    assert 0 < found.pop("visible_mAP") < 1
    assert set(found.values()) == {1.0}


def test_wrong_labels_lower_accuracy_and_f1_alone() -> None:
    (free, hidden), *others = SCENES
    answer = [[replace(free, occluded=True), replace(hidden, occluded=False)], *others]
    found = measure(SCENES, answer)
    assert found.pop("occlusion_accuracy") == pytest.approx(3 / 5)
    # Of two occluded objects one is found, and of two labels one is right.
    assert found.pop("occlusion_F1") == pytest.approx(1 / 2)
    assert found.pop("visible_IoU_occluded") == pytest.approx(0.7)
    assert set(found.values()) == {1.0}


def test_what_matches_nothing_counts_for_f1_alone() -> None:
    (_, hidden), second, third = SCENES
    # An object too few, and one too many that is said to be occluded.
    found = measure(SCENES, [[hidden], second, [*third, bar(2, 2, 9, hidden=3)]])
    assert found["occlusion_accuracy"] == 1.0
    assert found["occlusion_F1"] == pytest.approx(2 * 2 / (3 + 2))
    # A missed occluded object counts too; one that is not occluded does not.
    found = measure(SCENES, [[], second, third])
    assert found["occlusion_accuracy"] == 1.0
    assert found["occlusion_F1"] == pytest.approx(2 * 1 / (1 + 2))
    assert found["visible_IoU_occluded"] == pytest.approx(0.8)


def test_labels_of_unlikely_predictions_do_not_count() -> None:
    answer = [[replace(thing, score=0.4) for thing in SCENES[0]], *SCENES[1:]]
    assert measure(SCENES, answer)["occlusion_F1"] == pytest.approx(2 * 1 / (1 + 2))
    found = measure(SCENES, answer, score_thr=0.4)
    assert found["occlusion_F1"] == found["amodal_mAP"] == 1.0


def test_the_least_iou_is_an_argument() -> None:
    # One of the two objects is found with an IoU of 0.6.
    truth = [[bar(2, 2, 20, hidden=4), bar(2, 20, 20, hidden=4)]]
    answer = [[truth[0][0], bar(2, 20, 12)]]
    assert measure(truth, answer)["occlusion_accuracy"] == 1 / 2
    assert measure(truth, answer, iou_thr=0.61)["occlusion_accuracy"] == 1.0


def test_a_match_is_not_given_up_for_two_pairs_that_are_none() -> None:
    # IoUs of 0.6 and nothing, or crosswise 0.45 and 0.45.
    truth = [[bar(8, 2, 16), bar(18, 2, 16)]]
    found = measure(truth, [[bar(12, 2, 16), bar(2, 2, 16)]])
    assert found["occlusion_accuracy"] == 1.0


def test_the_threshold_counts_as_occluded() -> None:
    # 5 % are hidden, 10 of 200 pixels.
    truth = [[bar(2, 2, 20, hidden=1)]]
    assert measure(truth, truth)["occlusion_F1"] == 1.0
    answer = [[replace(truth[0][0], occluded=False)]]
    assert measure(truth, answer)["occlusion_accuracy"] == 0.0
    found = measure(truth, answer, occluded_threshold=0.051)
    assert found["occlusion_accuracy"] == 1.0
    assert np.isnan(found["occlusion_F1"])


def test_without_predictions() -> None:
    found = measure(SCENES, [[], [], []])
    assert [found[name] for name in [*COLUMNS, "occlusion_F1"]] == [0.0] * 7
    assert np.isnan([found[name] for name in OCCLUSION if name != "occlusion_F1"]).all()


def test_without_an_occluded_object() -> None:
    truth = [[bar(2, 2, 20)]]
    found = measure(truth, truth)
    assert [found[name] for name in [*COLUMNS, "occlusion_accuracy"]] == [1.0] * 7
    assert np.isnan([found[name] for name in OCCLUSION[1:]]).all()


def test_crowds_are_no_objects(tmp_path: Path) -> None:
    ann_file = write(tmp_path / "val.json", SCENES[:1])
    records = json.loads(Path(ann_file).read_text())
    records["annotations"][1]["iscrowd"] = 1
    Path(ann_file).write_text(json.dumps(records))
    metric = AmodalMetric(ann_file)
    metric.dataset_meta = {"classes": ("object",)}
    metric.process({}, [sample(1, SCENES[0][:1])])
    found = metric.evaluate(1)
    assert found["coco/amodal_mAP"] == found["coco/occlusion_accuracy"] == 1.0
    assert np.isnan(found["coco/occlusion_F1"])


def test_a_record_that_lacks_a_key_is_named(tmp_path: Path) -> None:
    ann_file = write(tmp_path / "val.json", SCENES)
    records = json.loads(Path(ann_file).read_text())
    del records["annotations"][2]["visible_mask"]
    Path(ann_file).write_text(json.dumps(records))
    with pytest.raises(ValueError, match=r"val\.json: .*id 3 has no 'visible_mask'"):
        AmodalMetric(ann_file)


def test_masks_are_kept_as_rle(tmp_path: Path) -> None:
    metric = AmodalMetric(write(tmp_path / "val.json", SCENES))
    metric.process({}, [sample(1, SCENES[0])])

    def kept(value: Any) -> list[np.ndarray]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            return [array for one in value for array in kept(one)]
        return [value] if isinstance(value, (np.ndarray, torch.Tensor)) else []

    assert kept(metric.results)
    assert all(array.size < SIZE for array in kept(metric.results))


def test_a_table_is_logged() -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        measure(SCENES, SCENES)
    finally:
        logger.removeHandler(handler)
    (table,) = [line for line in lines if "amodal_mAR" in line]
    names, values = (
        [cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines() if "|" in row
    )
    assert names == COLUMNS + OCCLUSION
    assert values == ["1.000"] * 9 + ["0.700"]


# --- brute force --------------------------------------------------------------------------------


def iou(one: np.ndarray, other: np.ndarray) -> float:
    union = (one | other).sum()
    return (one & other).sum() / union if union else 0.0


def best_pairs(ious: np.ndarray) -> list[tuple[int, int]]:
    """Of all ways to pair rows and columns the one with the most IoU, pairs below 0.5 left out."""
    if ious.shape[0] > ious.shape[1]:
        return [(row, column) for column, row in best_pairs(ious.T)]
    ways = [
        [(row, column) for row, column in enumerate(way) if ious[row, column] >= 0.5]
        for way in permutations(range(ious.shape[1]), ious.shape[0])
    ]
    return max(ways, key=lambda way: sum(ious[pair] for pair in way))


def random_thing(draw: np.random.Generator) -> Thing:
    x, y = draw.integers(0, 8, 2)
    width, height = draw.integers(8, 20, 2)
    thing = bar(x, y, width, height, hidden=draw.integers(0, 5))
    # No two pairs have the same IoU, but for a chance that the seeds do not take.
    thing.visible &= draw.random((SIZE, SIZE)) < 0.98
    thing.occluded = bool(draw.integers(2))
    thing.score = float(draw.random())
    return thing


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_occlusion_by_brute_force(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth = [[random_thing(draw) for _ in range(draw.integers(0, 5))] for _ in range(2)]
    truth.append([bar(2, 2, 20, hidden=5)])
    predicted = [[random_thing(draw) for _ in range(draw.integers(0, 6))] for _ in range(2)]
    predicted.append([bar(2, 2, 20, hidden=6)])
    found = measure(truth, predicted)

    right, labelled, occluded_pairs = [], [], []
    labels = occluded = 0
    for things, answers in zip(truth, predicted, strict=True):
        answers = [one for one in answers if one.score >= 0.5]
        hidden = [
            bool((~one.visible & one.amodal).sum() * 20 >= one.amodal.sum()) for one in things
        ]
        labels += sum(one.occluded for one in answers)
        occluded += sum(hidden)
        shape = len(answers), len(things)
        amodal = np.reshape([iou(a.amodal, t.amodal) for a in answers for t in things], shape)
        for i, j in best_pairs(amodal):
            right.append(answers[i].occluded == hidden[j])
            labelled.append(answers[i].occluded and hidden[j])
        visible = np.reshape([iou(a.visible, t.visible) for a in answers for t in things], shape)
        for i, j in best_pairs(visible):
            if hidden[j]:
                mask = things[j].amodal
                occluded_pairs.append((iou(answers[i].amodal, mask), iou(answers[i].visible, mask)))
    assert found["occlusion_accuracy"] == pytest.approx(np.mean(right))
    precision, recall = sum(labelled) / labels, sum(labelled) / occluded
    assert found["occlusion_F1"] == pytest.approx(2 * precision * recall / (precision + recall))
    amodal_iou, visible_iou = np.mean(occluded_pairs, 0)
    assert found["amodal_IoU_occluded"] == pytest.approx(amodal_iou)
    assert found["visible_IoU_occluded"] == pytest.approx(visible_iou)


# --- several processes --------------------------------------------------------------------------


def many() -> tuple[list[list[Thing]], list[list[Thing]]]:
    draw = np.random.default_rng(1)
    return tuple(
        [[random_thing(draw) for _ in range(3)] for _ in range(5)] + [[bar(2, 2, 20, hidden=5)]]
        for _ in range(2)
    )


def on_rank(rank: int) -> Json:
    truth, predicted = many()
    with TemporaryDirectory() as folder:
        metric = AmodalMetric(write(Path(folder) / "val.json", truth))
    metric.dataset_meta = {"classes": ("object",)}
    for number in range(rank, len(predicted), 2):
        metric.process({}, [sample(number + 1, predicted[number])])
    return metric.evaluate(len(predicted))


def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    truth, predicted = many()
    alone = measure(truth, predicted)
    assert 0 < alone["amodal_mAP"] < 1
    for found in results_of_two(__file__, tmp_path / "results"):
        assert found == {f"coco/{name}": value for name, value in alone.items()}


if __name__ == "__main__":
    work(on_rank)
