import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_plugins.metrics import (
    Estimate,
    Scores,
    delta_m,
    delta_m_over_seeds,
    ranking_similarity,
)

LOWER = ["rel", "rmse"]
number = st.floats(0.01, 100.0)
scores = st.fixed_dictionaries(
    {
        "depth": st.fixed_dictionaries({"rel": number, "acc": number}),
        "seg": st.fixed_dictionaries({"miou": number}),
    }
)
seeds = st.lists(scores, min_size=1, max_size=4)


def changed(scores: Scores, factors: Mapping[str, float]) -> Scores:
    return {
        task: {name: value * factors.get(name, 1.0) for name, value in metrics.items()}
        for task, metrics in scores.items()
    }


def flat(**metrics: float) -> Scores:
    """One metric a task."""
    return {name: {name: value} for name, value in metrics.items()}


def test_delta_m_by_hand():
    baseline = {"depth": {"rel": 0.2, "acc": 0.5}, "seg": {"miou": 0.4}}
    metrics = {"depth": {"rel": 0.1, "acc": 0.6}, "seg": {"miou": 0.3}}
    # depth: (+50 % + 20 %) / 2 = 35 %; seg: -25 %; mean 5 %
    assert delta_m(metrics, baseline, LOWER) == pytest.approx(5.0)
    assert delta_m(metrics, baseline, LOWER, convention="loss") == pytest.approx(-0.05)
    assert delta_m(baseline, baseline, LOWER) == 0.0


def test_an_absolute_change_from_0_exists():
    assert delta_m(flat(mIoU=3.0), flat(mIoU=0.0), convention="absolute") == 3.0


def test_errors_are_known_by_name():
    baseline = {"depth": {"rmse": 0.5, "d1": 80.0}, "normals": {"mean_angle": 20.0}}
    metrics = {"depth": {"rmse": 0.4, "d1": 80.0}, "normals": {"mean_angle": 18.0}}
    assert delta_m(metrics, baseline) == pytest.approx(10.0)
    assert delta_m(metrics, baseline, lower_is_better=()) == pytest.approx(-10.0)


@given(scores, scores, number)
def test_delta_m_does_not_depend_on_units(metrics: Scores, baseline: Scores, unit: float):
    units = {"rel": unit, "miou": 1.0 / unit}
    score = delta_m(metrics, baseline, LOWER)
    assert delta_m(changed(metrics, units), changed(baseline, units), LOWER) == pytest.approx(
        score, rel=1e-6, abs=1e-6
    )


@given(scores, scores, st.sampled_from(["rel", "acc", "miou"]), st.floats(1.01, 2.0))
def test_delta_m_is_better_where_a_metric_is(
    metrics: Scores, baseline: Scores, name: str, factor: float
):
    better = changed(metrics, {name: 1.0 / factor if name in LOWER else factor})
    assert delta_m(better, baseline, LOWER) > delta_m(metrics, baseline, LOWER)
    assert delta_m(better, baseline, LOWER, "loss") < delta_m(metrics, baseline, LOWER, "loss")


def test_delta_m_errors():
    with pytest.raises(KeyError, match="tasks differ"):
        delta_m({"a": {"x": 1.0}}, {"b": {"x": 1.0}})
    with pytest.raises(KeyError, match="metrics of 'a' differ"):
        delta_m({"a": {"x": 1.0}}, {"a": {"y": 1.0}})
    with pytest.raises(ValueError, match="a.x of the baseline is 0"):
        delta_m({"a": {"x": 1.0}}, {"a": {"x": 0.0}})
    with pytest.raises(ValueError, match="convention"):
        delta_m({"a": {"x": 1.0}}, {"a": {"x": 1.0}}, convention="A")


def test_over_seeds_by_hand():
    baselines = [flat(miou=0.3, rmse=2.0), flat(miou=0.5, rmse=2.0)]  # mean 0.4 and 2
    runs = [flat(miou=0.4, rmse=2.0), flat(miou=0.4, rmse=1.0), flat(miou=0.8, rmse=2.0)]
    # 0 %, 25 %, 50 %: standard deviation 25 %
    estimate = delta_m_over_seeds(runs, baselines, LOWER)
    assert estimate == pytest.approx((25.0, 25.0 / math.sqrt(3)))
    assert str(estimate) == "25.00 ± 14.43"
    loss = delta_m_over_seeds(runs, baselines, LOWER, convention="loss")
    assert f"{loss:.1%}" == "-25.0% ± 14.4%"
    assert str(delta_m_over_seeds(runs[1:2], baselines, LOWER)) == "25.00 ± nan"
    assert str(Estimate(-3.37, 0.72)) == "-3.37 ± 0.72"


@given(seeds)
def test_the_baseline_over_seeds_scores_0(baselines: list[Scores]):
    assert delta_m_over_seeds(baselines, baselines, LOWER).mean == pytest.approx(0.0, abs=1e-9)


@given(scores, scores, st.integers(2, 4))
def test_equal_seeds_have_no_error(run: Scores, baseline: Scores, count: int):
    score = delta_m(run, baseline, LOWER)
    estimate = delta_m_over_seeds([run] * count, [baseline], LOWER)
    assert estimate == pytest.approx((score, 0.0), rel=1e-9, abs=1e-9)


def test_over_seeds_errors():
    good, other = flat(a=1.0), flat(b=1.0)
    with pytest.raises(ValueError, match="runs: no seed"):
        delta_m_over_seeds([], [good])
    with pytest.raises(ValueError, match="baselines: no seed"):
        delta_m_over_seeds([good], [])
    with pytest.raises(KeyError, match=r"runs\[1\]: tasks differ"):
        delta_m_over_seeds([good, other], [good])
    with pytest.raises(KeyError, match=r"baselines\[1\]: metrics of 'a' differ"):
        delta_m_over_seeds([good], [good, {"a": {"y": 1.0}}])


def test_ranking_similarity_by_hand():
    first = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert ranking_similarity(first, first) == 1.0
    assert ranking_similarity(first, {"a": 9.0, "b": 5.0, "c": 1.0}) == 1.0  # the reverse
    assert ranking_similarity(first, {"a": 2.0, "b": 1.0, "c": 3.0}) == pytest.approx(2 / 3)
    with pytest.raises(KeyError):
        ranking_similarity(first, {"a": 1.0})
