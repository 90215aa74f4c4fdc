"""Means over seeds, paired tests, and how many seeds an answer takes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats

from mtl_plugins.metrics import Estimate

ALPHA = 0.05
"""Chance that a table of runs from one distribution names a difference."""
MOST_SEEDS = 100


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean over seeds, with its standard error; NaN of fewer than two."""
    if not values:
        return Estimate(math.nan, math.nan)
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return Estimate(statistics.fmean(values), spread / math.sqrt(len(values)))


class Difference(NamedTuple):
    """A method minus the baseline in one metric, paired by seed.

    Attributes:
        mean: Mean of the differences.
        standard_error: Standard error of the mean; NaN of one seed.
        p: Probability of so large a mean without a difference (paired t-test, two-sided); NaN of
            one seed.
        seeds: Number of pairs.
    """

    mean: float
    standard_error: float
    p: float
    seeds: int

    @property
    def beyond_two_errors(self) -> bool:
        """Whether the mean is more than two standard errors from 0."""
        return abs(self.mean) > 2.0 * self.standard_error


def resolution(values: Sequence[float]) -> float:
    """Return the step to which values were rounded, a power of ten; 0 if there is none.

    MMDetection rounds its scores to 0.001. Differences of rounded scores may agree by chance,
    so that their spread says nothing.
    """
    if len(set(values)) == 1:
        return 0.0
    for digits in range(7):
        if all(math.isclose(v, round(v, digits), rel_tol=0.0, abs_tol=1e-9) for v in values):
            return 10.0**-digits
    return 0.0


def paired_difference(
    method: Sequence[float], baseline: Sequence[float], step: float | None = None
) -> Difference:
    """Compare a method with the baseline, seed by seed.

    The variance is at least that of rounding (``step ** 2 / 6`` for a difference), without which
    two seeds that agree by chance would prove anything.

    Args:
        method: Scores of the method, one a seed.
        baseline: Scores of the baseline with the same seeds.
        step: Step to which scores were rounded; by default as :func:`resolution` finds it.
    """
    differences = [a - b for a, b in zip(method, baseline, strict=True)]
    count = len(differences)
    mean = statistics.fmean(differences)
    if count < 2:
        return Difference(mean, math.nan, math.nan, count)
    step = resolution([*method, *baseline]) if step is None else step
    variance = max(statistics.variance(differences), step**2 / 6.0)
    error = math.sqrt(variance / count)
    if error == 0.0:
        return Difference(mean, 0.0, 1.0 if mean == 0.0 else 0.0, count)
    return Difference(mean, error, float(2.0 * stats.t.sf(abs(mean) / error, count - 1)), count)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust probabilities for the number of tests (Holm 1979); NaN is no test.

    With ``adjusted <= 0.05`` taken for a difference, a table of tests without any difference
    names one with a probability of at most 5 %, however the tests depend on each other.
    """
    order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
    adjusted, largest = [math.nan] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def seeds_needed(difference: Difference, tests: int, power: float = 0.8) -> int | None:
    """Estimate the seeds with which a difference of this size and spread would be found.

    Args:
        difference: The difference seen so far, taken for the true one.
        tests: Number of tests in the table.
        power: Probability of finding the difference.

    Returns:
        Number of seeds; None if it is more than :data:`MOST_SEEDS`, or one seed is all there is.
    """
    if math.isnan(difference.standard_error) or difference.mean == 0.0:
        return None
    spread = difference.standard_error * math.sqrt(difference.seeds)
    if spread == 0.0:
        return max(2, difference.seeds)
    effect = abs(difference.mean) / spread
    for count in range(2, MOST_SEEDS + 1):
        bound = stats.t.ppf(1.0 - ALPHA / tests / 2.0, count - 1)
        if stats.nct.sf(bound, count - 1, effect * math.sqrt(count)) >= power:
            return count
    return None
