"""Metrics of dense prediction against loops over pixels, MMSegmentation, and two processes."""

from __future__ import annotations

import itertools
import math
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.evaluation import DepthMetric, IoUMetric
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample
from two_processes import results_of_two, work

from mtl_plugins.metrics import LOWER_IS_BETTER, PAPER_METRICS
from mtl_plugins.mm.evaluation import (
    DenseDepthMetric,
    DenseIoUMetric,
    EdgeMetric,
    NormalMetric,
    SaliencyMetric,
)
from mtl_plugins.mm.evaluation.dense_binary import count_matches
from mtl_plugins.mm.structures import FIELDS
from mtl_plugins.mm.thinning import thin

Maps = list[np.ndarray]
seeds = st.integers(0, 2**32 - 1)
fast = settings(max_examples=25, deadline=None)


def sample(field: str, prediction: Any, truth: Any) -> dict[str, Any]:
    """Build a data sample as the evaluator passes it on."""
    names = FIELDS[field]
    maps = {names.prediction: prediction, names.truth: truth}
    tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in maps.items()}
    shaped = {k: v if names.channels == 3 else v[None] for k, v in tensors.items()}
    return {"img_path": "a.jpg", **{key: {"data": value} for key, value in shaped.items()}}


def score(metric: BaseMetric, samples: Sequence[dict[str, Any]]) -> dict[str, float]:
    for one in samples:
        metric.process({}, [one])
    prefix = f"{metric.prefix}/"
    return {key.removeprefix(prefix): v for key, v in metric.evaluate(len(samples)).items()}


def samples_of(field: str, predictions: Maps, truths: Maps) -> list[dict[str, Any]]:
    return [sample(field, p, t) for p, t in zip(predictions, truths, strict=True)]


def shapes(rng: np.random.Generator) -> list[tuple[int, int]]:
    return [tuple(rng.integers(1, 7, 2)) for _ in range(rng.integers(1, 5))]


# --- classes ------------------------------------------------------------------------------------


def classes(rng: np.random.Generator) -> tuple[Maps, Maps]:
    predictions = [rng.integers(0, 4, shape) for shape in shapes(rng)]
    truths = [rng.choice([0, 1, 3, 255], p.shape) for p in predictions]  # 2 only in predictions
    truths[0][0, 0] = 1
    return predictions, truths


def iou_by_loops(predictions: Maps, truths: Maps, absent: float) -> tuple[float, float, float]:
    pairs = [
        (p, t)
        for prediction, truth in zip(predictions, truths, strict=True)
        for p, t in zip(prediction.flat, truth.flat, strict=True)
        if t != 255
    ]
    ious, accuracies = [], []
    for c in range(5):  # 4 is nowhere
        both = sum(p == c and t == c for p, t in pairs)
        either = sum(p == c or t == c for p, t in pairs)
        true = sum(t == c for _, t in pairs)
        ious.append(both / either if either else absent)
        accuracies.append(both / true if true else absent)
    right = sum(p == t for p, t in pairs) / len(pairs)
    return 100 * np.nanmean(ious), 100 * right, 100 * np.nanmean(accuracies)


@fast
@given(seeds, st.sampled_from([math.nan, 0.0]), st.sampled_from(["sem_seg", "human_parts"]))
def test_classes_by_loops(seed: int, absent: float, field: str) -> None:
    predictions, truths = classes(np.random.default_rng(seed))
    metric = DenseIoUMetric(field, 5, nan_to_num=None if math.isnan(absent) else absent)
    found = score(metric, samples_of(field, predictions, truths))
    assert tuple(found) == ("mIoU", "aAcc", "mAcc")
    assert tuple(found.values()) == pytest.approx(iou_by_loops(predictions, truths, absent))


def test_an_average_over_images_or_batches() -> None:
    rng = np.random.default_rng(0)
    truths = [rng.integers(0, 3, (4, 5)) for _ in range(5)]
    predictions = [rng.integers(0, 3, (4, 5)) for _ in range(5)]
    truths[1][:] = 255  # counts nowhere, but is one of a batch
    samples = samples_of("sem_seg", predictions, truths)

    def mean(groups: list[list[int]]) -> Any:
        of = [
            iou_by_loops([predictions[i] for i in g], [truths[i] for i in g], math.nan)
            for g in groups
        ]
        return pytest.approx(tuple(np.mean(of, 0)))

    for average, groups in {
        "set": [[0, 2, 3, 4]],
        "image": [[0], [2], [3], [4]],
        2: [[0], [2, 3], [4]],
        3: [[0, 2], [3, 4]],
    }.items():
        metric = DenseIoUMetric(num_classes=5, average=average)
        assert tuple(score(metric, samples).values()) == mean(groups)


def test_classes_as_in_mmsegmentation() -> None:
    predictions, truths = classes(np.random.default_rng(3))
    samples = samples_of("sem_seg", predictions, truths)
    ours, theirs = DenseIoUMetric(), IoUMetric(prefix="sem_seg")
    ours.dataset_meta = theirs.dataset_meta = {"classes": ("a", "b", "c", "d", "e")}
    expected = score(theirs, samples)
    assert score(ours, samples) == pytest.approx(expected, abs=0.005001)


def test_more_pixels_than_float32_counts() -> None:
    """One image has 2^24 right pixels, in the first class: adding 1 to that is lost in float32."""
    metric = DenseIoUMetric(num_classes=2)
    areas = [(2.0**24, 0.0), *[(1.0, 0.0)] * 100]
    wrong = torch.tensor([0.0, 1.0])
    images = [
        {
            key: torch.tensor(one) + (wrong if key != "intersect" else 0)
            for key in ("intersect", "union", "prediction", "label")
        }
        for one in areas
    ]
    found = metric.compute_metrics(images)
    right, every = 2**24 + 100, 2**24 + 201
    assert found["aAcc"] == pytest.approx(100 * right / every, rel=1e-9)


def test_classes_out_of_range() -> None:
    right, wrong = np.zeros((2, 2), int), np.array([[0, 3], [255, 0]])
    with pytest.raises(ValueError, match=r"DenseIoUMetric, a.jpg: label has 3, outside 0 to 2"):
        score(DenseIoUMetric(num_classes=3), [sample("sem_seg", right, wrong)])
    with pytest.raises(ValueError, match="prediction has 3"):
        score(DenseIoUMetric(num_classes=3), [sample("sem_seg", np.full((2, 2), 3), right)])
    with pytest.raises(ValueError, match="metainfo has no human_parts_classes"):
        score(DenseIoUMetric("human_parts"), [sample("human_parts", right, right)])
    named = DenseIoUMetric("human_parts")
    named.dataset_meta = {"classes": ["of something else"], "human_parts_classes": ("a", "b")}
    assert score(named, [sample("human_parts", right, right)])["mIoU"] == 100.0


# --- depth --------------------------------------------------------------------------------------


def depths(rng: np.random.Generator) -> tuple[Maps, Maps]:
    truths = [rng.uniform(0.5, 8.0, shape) * (rng.random(shape) < 0.7) for shape in shapes(rng)]
    truths[0][0, 0] = 3.0
    predictions = [rng.uniform(0.5, 8.0, truth.shape) for truth in truths]
    return [p.astype(np.float32) for p in predictions], [t.astype(np.float32) for t in truths]


@fast
@given(seeds)
def test_depth_by_loops(seed: int) -> None:
    predictions, truths = depths(np.random.default_rng(seed))
    pairs = [
        (float(p), float(t))
        for prediction, truth in zip(predictions, truths, strict=True)
        for p, t in zip(prediction.flat, truth.flat, strict=True)
        if t > 0
    ]
    logs = [math.log(p / t) for p, t in pairs]

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    expected = {
        "rmse": math.sqrt(mean([(p - t) ** 2 for p, t in pairs])),
        "abs_err": mean([abs(p - t) for p, t in pairs]),
        "abs_rel": mean([abs(p - t) / t for p, t in pairs]),
        "sq_rel": mean([(p - t) ** 2 / t for p, t in pairs]),
        "rmse_log": math.sqrt(mean([log**2 for log in logs])),
        "log10": mean([abs(math.log10(p / t)) for p, t in pairs]),
        "silog": math.sqrt(mean([log**2 for log in logs]) - mean(logs) ** 2 / 2),
        **{f"d{n}": mean([max(p / t, t / p) < 1.25**n for p, t in pairs]) for n in (1, 2, 3)},
    }
    found = score(DenseDepthMetric(), samples_of("depth", predictions, truths))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_depth_per_image_as_in_mmsegmentation() -> None:
    rng = np.random.default_rng(1)
    truths = [rng.uniform(0, 9, (5, 6)).astype(np.float32) for _ in range(3)]
    predictions = [rng.uniform(0.5, 8, (5, 6)).astype(np.float32) for _ in range(3)]
    samples = samples_of("depth", predictions, truths)
    limits = {"min_depth_eval": 1.0, "max_depth_eval": 7.0}
    theirs = score(DepthMetric(**limits, prefix="depth"), samples)
    ours = score(DenseDepthMetric(average="image", **limits), samples)
    assert {key: ours[key] for key in theirs} == pytest.approx(theirs, rel=1e-5)


def test_defects_of_the_depth_metric_of_mmsegmentation() -> None:
    with pytest.raises(TypeError, match="isinstance"):
        DepthMetric(depth_metrics=["rmse"])

    # Errors 0 at one pixel of the first image, 1 at all four of the second.
    one, two = np.array([[2.0, 0], [0, 0]], np.float32), np.full((2, 2), 3, np.float32)
    samples = samples_of("depth", [one + 0, two + 1], [one, two])
    assert score(DepthMetric(prefix="d"), samples)["rmse"] == 0.5
    ours = DenseDepthMetric(depth_metrics=["rmse"])
    assert score(ours, samples) == {"rmse": pytest.approx(math.sqrt(4 / 5))}  # 0.894
    per_image = DenseDepthMetric(depth_metrics=["rmse"], average="image")
    assert score(per_image, samples) == {"rmse": 0.5}

    samples.append(sample("depth", two, np.zeros((2, 2), np.float32)))  # no valid pixel
    assert math.isnan(score(DepthMetric(prefix="d"), samples)["rmse"])
    assert score(ours, samples) == {"rmse": pytest.approx(math.sqrt(4 / 5))}
    assert score(per_image, samples) == {"rmse": 0.5}

    negative = [sample("depth", np.full((2, 2), -3, np.float32), two)]
    theirs = score(DepthMetric(prefix="d"), negative)
    assert math.isnan(theirs["rmse_log"]) and math.isnan(theirs["silog"])
    assert theirs["d1"] == 1.0  # -3 for 3 passes for right
    found = score(DenseDepthMetric(), negative)
    assert found["d3"] == 0.0 and found["rmse"] == 6.0 and found["abs_rel"] == 2.0
    assert found["rmse_log"] == pytest.approx(math.log(3 / 1e-3))
    assert all(math.isfinite(value) for value in found.values())


# --- normals ------------------------------------------------------------------------------------


@fast
@given(seeds, st.sampled_from([0.02, 0.5, 7.0]))
def test_normals_by_loops(seed: int, resolution: float) -> None:
    rng = np.random.default_rng(seed)
    truths = [rng.normal(size=(3, *shape)) * (rng.random(shape) < 0.7) for shape in shapes(rng)]
    truths[0][:, 0, 0] = 1, -1, 0  # the sum is 0, but it is a normal
    predictions = [
        truth * rng.uniform(0.1, 5) + rng.normal(0, rng.uniform(0.01, 2), truth.shape)
        for truth in truths
    ]
    angles = []
    for prediction, truth in zip(predictions, truths, strict=True):
        for p, t in zip(prediction.reshape(3, -1).T, truth.reshape(3, -1).T, strict=True):
            if t.any():
                across, along = np.linalg.norm(np.cross(p, t)), p @ t
                angles.append(math.degrees(math.atan2(across, along)))
    found = score(NormalMetric(resolution=resolution), samples_of("normals", predictions, truths))
    assert found.pop("mean_angle") == pytest.approx(np.mean(angles), abs=1e-5)
    lower_median = sorted(angles)[math.ceil(len(angles) / 2) - 1]
    assert abs(found.pop("median_angle") - lower_median) <= resolution + 1e-5
    expected = {
        f"within_{limit:g}": 100 * np.mean(np.array(angles) < limit) for limit in (11.25, 22.5, 30)
    }
    assert found == pytest.approx(expected)


def test_a_median_of_many_angles_is_near_numpys() -> None:
    angles = np.random.default_rng(0).gamma(2.0, 10.0, (100, 200)).clip(0, 180)
    turned = np.radians(angles)
    truth = np.stack([np.zeros_like(turned), np.zeros_like(turned), np.ones_like(turned)])
    prediction = np.stack([np.sin(turned), np.zeros_like(turned), np.cos(turned)])
    found = score(NormalMetric(), [sample("normals", prediction, truth)])
    assert found["median_angle"] == pytest.approx(np.median(angles), abs=0.005)


def test_predicted_normals_without_a_direction() -> None:
    truth = np.tile(np.array([0.0, 0, 1])[:, None, None], (1, 2, 2))
    found = score(NormalMetric(), [sample("normals", 0 * truth, truth)])
    assert found["mean_angle"] == pytest.approx(90.0)
    assert found["median_angle"] == pytest.approx(90.0, abs=0.02)
    found = score(NormalMetric(), [sample("normals", truth * math.nan, truth)])
    assert math.isnan(found["mean_angle"]) and math.isnan(found["median_angle"])


# --- saliency -----------------------------------------------------------------------------------


def probabilities(rng: np.random.Generator) -> tuple[Maps, Maps]:
    truths = [rng.choice([0, 1, 255], shape).astype(np.uint8) for shape in shapes(rng)]
    truths[0][0, 0] = 1
    truths.append(np.zeros((2, 3), np.uint8))  # nothing salient
    return [rng.random(truth.shape) * rng.choice([0.1, 1.0]) for truth in truths], truths


@fast
@given(seeds, st.sampled_from([1.0, 0.3]), st.sampled_from([None, "set"]))
def test_saliency_by_loops(seed: int, beta: float, average: str | None) -> None:
    predictions, truths = probabilities(np.random.default_rng(seed))
    known = [
        [(p, t) for p, t in zip(prediction.flat, truth.flat, strict=True) if t != 255]
        for prediction, truth in zip(predictions, truths, strict=True)
    ]
    groups = [list(itertools.chain(*known))] if average == "set" else [one for one in known if one]
    measures, ious = [], []
    for threshold in np.linspace(0.2, 0.9, 15):
        found = []
        for pixels in groups:
            right = sum(p > threshold and t == 1 for p, t in pixels)
            chosen = sum(p > threshold for p, _ in pixels)
            salient = sum(t == 1 for _, t in pixels)
            either = chosen + salient - right
            found.append(
                (
                    right / chosen if chosen else 0.0,
                    right / salient if salient else 0.0,
                    right / either if either else 1.0,
                )
            )
        precision, recall, iou = np.mean(found, 0)
        weighed = beta * precision + recall
        measures.append((1 + beta) * precision * recall / weighed if weighed else 0.0)
        ious.append(iou)
    metric = SaliencyMetric(average=average, beta_squared=beta)
    found = score(metric, samples_of("saliency", predictions, truths))
    assert found == pytest.approx({"maxF": 100 * max(measures), "mIoU": 100 * max(ious)})


# --- edges --------------------------------------------------------------------------------------


def thin_by_loops(mask: np.ndarray) -> np.ndarray:
    """Follow the conditions as MATLAB's page on ``bwmorph`` prints them, pixel by pixel."""
    mask = np.pad(mask, 1)
    steps = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]
    while True:
        before = mask.copy()
        for turn in (0, 4):  # the second step is the first, turned by half
            deleted = []
            for row, column in np.argwhere(mask):
                x = [bool(mask[row + dy, column + dx]) for dy, dx in steps]
                x = [None, *x, x[0]]  # x[1] to x[9]; x[9] is x[1]
                crossings = sum(
                    not x[2 * i - 1] and (x[2 * i] or x[2 * i + 1]) for i in range(1, 5)
                )
                n1 = sum(x[2 * k - 1] or x[2 * k] for k in range(1, 5))
                n2 = sum(x[2 * k] or x[2 * k + 1] for k in range(1, 5))
                side = (x[2 + turn % 8] or x[3 + turn] or not x[8 - turn]) and x[1 + turn]
                if crossings == 1 and 2 <= min(n1, n2) <= 3 and not side:
                    deleted.append((row, column))
            for place in deleted:
                mask[place] = False
        if (mask == before).all():
            return mask[1:-1, 1:-1]


def matches_by_paths(found: np.ndarray, true: np.ndarray, distance: float) -> int:
    """Match one by one along augmenting paths (Kuhn's algorithm)."""
    partner: dict[int, int] = {}

    def place(i: int, seen: set[int]) -> bool:
        for j, point in enumerate(true):
            if j not in seen and math.dist(found[i], point) <= distance:
                seen.add(j)
                if j not in partner or place(partner[j], seen):
                    partner[j] = i
                    return True
        return False

    return sum(place(i, set()) for i in range(len(found)))


@fast
@given(seeds)
def test_thinning_and_matching_by_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 12, 2)) < rng.uniform(0.2, 1)
    assert (thin(mask) == thin_by_loops(mask)).all()
    points = [np.unique(rng.integers(0, 9, (rng.integers(0, 25), 2)), axis=0) for _ in range(2)]
    for distance in (0.0, 1.0, 2.3, 20.0):
        assert count_matches(*points, distance) == matches_by_paths(*points, distance)


def test_a_bar_is_thinned_to_its_middle() -> None:
    bar = np.zeros((9, 30), bool)
    bar[3:6, 2:28] = True
    line = thin(bar)
    assert line.any(0).sum() >= 24 and (line.sum(0) <= 1).all() and line[4].sum() == line.sum()
    assert (thin(line) == line).all()


@settings(max_examples=10, deadline=None)
@given(seeds, st.sampled_from(["set", "image"]))
def test_edges_by_loops(seed: int, average: str) -> None:
    rng = np.random.default_rng(seed)
    truths = [rng.choice([0, 0, 1, 255], (8, 9)).astype(np.uint8) for _ in range(3)]
    predictions = [(t == 1) * 0.4 + rng.random(t.shape) * 0.6 for t in truths]
    distance = 0.1 * math.hypot(8, 9)
    losses, measures = [], []
    for p, t in zip(predictions, truths, strict=True):
        weighed = np.where(t == 1, -0.9 * np.log(p), -0.1 * np.log(1 - p))
        losses.append(weighed[t != 255])
    for threshold in (0.2, 0.4, 0.6, 0.8):
        counts = []
        for p, t in zip(predictions, truths, strict=True):
            edges = np.argwhere(thin_by_loops(p >= threshold) & (t != 255))
            true = np.argwhere(t == 1)
            counts.append((matches_by_paths(edges, true, distance), len(edges), len(true)))
        if average == "set":
            counts = [tuple(np.sum(counts, 0))]
        precision = np.mean([m / e if e else 0.0 for m, e, _ in counts])
        recall = np.mean([m / t if t else 0.0 for m, _, t in counts])
        both = precision + recall
        measures.append(2 * precision * recall / both if both else 0.0)
    metric = EdgeMetric(thresholds=4, max_dist=0.1, pos_weight=0.9, average=average)
    pooled = np.concatenate(losses) if average == "set" else [one.mean() for one in losses]
    assert score(metric, samples_of("edges", predictions, truths)) == pytest.approx(
        {"loss": np.mean(pooled), "odsF": 100 * max(measures)}
    )


def test_edges_at_a_distance() -> None:
    """The tolerance of BSDS on 100 x 100 pixels is 1.06 pixels."""
    truth = np.zeros((100, 100), np.uint8)
    truth[50, 10:90] = 1
    scores = []
    for offset in range(3):
        prediction = np.roll(truth, offset, 0) * 0.9
        scores.append(score(EdgeMetric(thresholds=3), [sample("edges", prediction, truth)])["odsF"])
    assert scores == pytest.approx([100.0, 100.0, 0.0])
    wide = np.maximum(truth, np.maximum(np.roll(truth, 1, 0), np.roll(truth, -1, 0)))
    both = [sample("edges", wide * 0.9, wide)]
    thinned = score(EdgeMetric(thresholds=3, thin_truth=True), both)
    assert thinned["odsF"] == 100.0
    assert score(EdgeMetric(thresholds=3), both)["odsF"] < 60.0  # one of three rows is found
    assert set(score(EdgeMetric(thresholds=0), both)) == {"loss"}


# --- every metric -------------------------------------------------------------------------------

METRICS_OF = {
    "sem_seg": {"type": "DenseIoUMetric"},
    "human_parts": {"type": "DenseIoUMetric", "field": "human_parts", "num_classes": 4},
    "depth": {"type": "DenseDepthMetric"},
    "normals": {"type": "NormalMetric"},
    "edges": {"type": "EdgeMetric", "thresholds": 3},
    "saliency": {"type": "SaliencyMetric"},
}


def drawn(field: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a prediction and a label."""
    size = (4, 5)
    if FIELDS[field].kind == "classes":
        return rng.integers(0, 4, size), rng.choice([0, 1, 2, 3, 255], size)
    if FIELDS[field].kind == "binary":
        return rng.random(size), rng.choice([0, 1, 255], size).astype(np.uint8)
    if FIELDS[field].kind == "depth":
        return rng.uniform(1, 5, size), rng.uniform(1, 5, size)
    return rng.normal(size=(3, *size)), rng.normal(size=(3, *size))


@pytest.mark.parametrize("field", METRICS_OF)
@pytest.mark.parametrize("average", [None, "set", "image", 2])
def test_images_without_a_label_harm_nothing(field: str, average: Any, caplog) -> None:
    rng = np.random.default_rng(5)
    samples = [sample(field, *drawn(field, rng)) for _ in range(4)]
    prediction, truth = drawn(field, rng)
    unknown = sample(field, prediction, np.full_like(truth, FIELDS[field].unknown))
    unlabelled = {FIELDS[field].prediction: unknown[FIELDS[field].prediction]}
    metric = METRICS.build({**METRICS_OF[field], "average": average})
    metric.dataset_meta = {"classes": "abcd"}
    expected = score(metric, samples)
    assert all(math.isfinite(value) for value in expected.values())
    assert score(metric, [*samples, unknown, unlabelled]) == expected

    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    none = score(metric, [unknown, unlabelled])
    logger.removeHandler(caplog.handler)
    assert none.keys() == expected.keys() and all(math.isnan(value) for value in none.values())
    assert f"no image has a labelled pixel of {field}" in caplog.text


@pytest.mark.parametrize("field", METRICS_OF)
def test_an_image_leaves_little(field: str) -> None:
    """Its size must not depend on that of the image."""
    sizes = []
    for repeats in (1, 30):
        metric = METRICS.build(METRICS_OF[field])
        metric.dataset_meta = {"classes": "abcd"}
        maps = drawn(field, np.random.default_rng(0))
        metric.process({}, [sample(field, *(np.repeat(one, repeats, -1) for one in maps))])
        sizes.append(len(pickle.dumps(metric.results)))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02) and sizes[0] < 40_000


def test_every_metric_of_the_papers_is_reported() -> None:
    names: dict[str, set[str]] = {}
    for field, config in METRICS_OF.items():
        metric = METRICS.build(config)
        assert metric.prefix == field
        names[field] = set(metric.names)
    for counted in PAPER_METRICS.values():
        assert all(set(metrics) <= names[task] for task, metrics in counted.items())
    assert set().union(*names.values()) >= LOWER_IS_BETTER


def test_the_task_is_the_prefix() -> None:
    metric = NormalMetric(task="surface")
    truth = np.ones((3, 2, 2))
    metric.process({}, [sample("normals", truth, truth)])
    assert metric.evaluate(1)["surface/within_30"] == 100.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "NormalMetric", "field": "depth"}, r"NormalMetric.field: .*\['normals'\].*depth"),
        ({"type": "EdgeMetric", "average": "pixel"}, "EdgeMetric.average: .*'pixel'"),
        ({"type": "EdgeMetric", "average": 0}, "EdgeMetric.average: .*got 0"),
        ({"type": "DenseDepthMetric", "depth_metrics": ["rms"]}, r"depth_metrics: .*\['rms'\]"),
    ],
)
def test_wrong_arguments(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METRICS.build(config)


def test_wrong_predictions() -> None:
    truth = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"a.jpg: pred_depth_map is \(1, 3, 2\), .*\(1, 2, 3\)"):
        score(DenseDepthMetric(), [sample("depth", truth.T, truth)])
    lacking = sample("depth", truth, truth)
    del lacking["pred_depth_map"]
    with pytest.raises(ValueError, match="a.jpg: gt_depth_map, but no pred_depth_map"):
        score(DenseDepthMetric(), [lacking])
    edge = truth.astype(np.uint8)
    with pytest.raises(ValueError, match=r"a.jpg: prediction, a probability, has -2.0"):
        score(EdgeMetric(), [sample("edges", truth - 3, edge)])
    with pytest.raises(ValueError, match="label has 128"):
        score(SaliencyMetric(), [sample("saliency", truth, edge * 128)])


# --- two processes ------------------------------------------------------------------------------


class Predicted(BaseModel):
    """Returns the predictions that the samples come with."""

    def forward(self, inputs: Any, data_samples: list[SegDataSample], mode: str) -> Any:
        return data_samples


class Scenes(torch.utils.data.Dataset):
    """Five images; every image but the first lacks one label, so that two ranks draw one twice."""

    metainfo = {"classes": ("a", "b", "c", "d")}

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        data_sample = SegDataSample()
        for number, field in enumerate(FIELDS):
            maps = sample(field, *drawn(field, rng))
            if number == index - 1:
                del maps[FIELDS[field].truth]
            for key in set(maps) - {"img_path"}:
                data_sample.set_field(PixelData(data=maps[key]["data"]), key)
        return {"inputs": torch.zeros(3, 4, 5), "data_samples": data_sample}


def run_test(folder: str) -> dict[str, float]:
    """Tests as users do, on this rank's share of the images."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        runner = Runner(
            model=Predicted(),
            work_dir=folder,
            test_dataloader={
                "dataset": Scenes(),
                "batch_size": 2,
                "sampler": {"type": "DefaultSampler", "shuffle": False},
            },
            test_cfg={},
            test_evaluator=list(METRICS_OF.values()),
            default_scope="mmseg",
            experiment_name=Path(folder).name,
        )
        return runner.test()


def on_rank(rank: int) -> dict[str, float]:
    return run_test(f"{sys.argv[1]}.runner{rank}")


def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    alone = run_test(str(tmp_path / "alone"))
    assert len(alone) == 3 + 3 + 10 + 5 + 2 + 2
    assert all(math.isfinite(value) for value in alone.values())
    for found in results_of_two(__file__, tmp_path / "results"):
        assert found == pytest.approx(alone, rel=1e-12)


if __name__ == "__main__":
    work(on_rank)
