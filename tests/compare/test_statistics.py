"""Tests on seeds: against SciPy, closed forms, and simulated tables without any difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mtl_plugins.compare.statistics import (
    estimate,
    holm,
    paired_difference,
    resolution,
    seeds_needed,
)


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_paired_difference_is_scipys(seeds):
    rng = np.random.default_rng(seeds)
    ours, theirs = rng.normal(size=(2, seeds))
    expected = stats.ttest_rel(ours, theirs)
    found = paired_difference(list(ours), list(theirs))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.mean / found.standard_error == pytest.approx(expected.statistic)


def test_estimate():
    values = [1.0, 2.0, 4.0]
    assert estimate(values).mean == pytest.approx(np.mean(values))
    assert estimate(values).standard_error == pytest.approx(stats.sem(values))
    assert math.isnan(estimate([1.0]).standard_error)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8))
def test_holm_by_its_definition(ps):
    adjusted = holm(ps)
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for rank, i in enumerate(np.argsort(ps, kind="stable")):
            if ps[i] * (len(ps) - rank) > level:
                break
            rejected.add(int(i))
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected


def test_holm_leaves_out_what_is_no_test():
    assert holm([0.04, math.nan]) == [0.04, pytest.approx(math.nan, nan_ok=True)]


@pytest.mark.parametrize(
    ("values", "step"),
    [([0.123, 0.5], 1e-3), ([12.0, 3.0], 1.0), ([0.1234567891, 0.5], 0.0), ([0.0, 0.0], 0.0)],
)
def test_resolution(values, step):
    assert resolution(values) == pytest.approx(step)


def test_rounded_scores_that_agree_by_chance_prove_nothing():
    """MMDetection rounds to 0.001: two differences may be equal, with a spread of 0."""
    found = paired_difference([0.311, 0.301], [0.310, 0.300])
    assert 0.05 < found.p < 1.0
    assert paired_difference([0.3, 0.3], [0.3, 0.3]).p == 1.0


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("digits", [None, 3])
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_one_distribution_is_no_difference_in_95_of_100_tables(seeds, digits, correlation):
    """Four methods and two metrics that move together; each table is one decision."""
    rng = np.random.default_rng(1)
    tables, wrong = 600, 0
    for _ in range(tables):
        common = rng.normal(size=(5, seeds, 1))
        scores = correlation * common + rng.normal(size=(5, seeds, 2))
        scores = 0.3 + (0.0008 if digits else 0.01) * scores
        scores = scores if digits is None else scores.round(digits)
        ps = [
            paired_difference(list(scores[m, :, k]), list(scores[0, :, k])).p
            for m in range(1, 5)
            for k in range(2)
        ]
        wrong += min(holm(ps)) <= 0.05
    # Three standard errors of a share of 0.05 above it.
    assert wrong / tables <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / tables)


def test_seeds_needed_find_the_difference_in_80_of_100_cases():
    found = paired_difference([1.0, 2.0, 3.0, 2.6], [0.0, 1.5, 1.0, 1.9], step=0.0)
    tests = 4
    count = seeds_needed(found, tests)
    spread = found.standard_error * math.sqrt(found.seeds)
    rng = np.random.default_rng(0)
    shares = []
    for seeds in (count, max(2, count - 2)):
        drawn = rng.normal(found.mean, spread, size=(4000, seeds))
        shares.append(np.mean(stats.ttest_1samp(drawn, 0.0, axis=1).pvalue <= 0.05 / tests))
    assert shares[0] >= 0.78 and shares[1] < 0.8


def test_no_number_of_seeds_shows_nothing():
    assert seeds_needed(paired_difference([1.0, 2.0], [1.0, 2.0]), 3) is None
    assert seeds_needed(paired_difference([1.0, -1.0, 1.01], [0.0, 0.0, 1.0]), 3) is None
    assert seeds_needed(paired_difference([1.0], [0.0]), 3) is None
