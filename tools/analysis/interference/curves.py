"""Numbers that the pictures are made of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mtl_plugins.compare.figures import smooth

Curve = tuple[np.ndarray, np.ndarray]  # iterations, values; NaN where a value was not finite
Curves = dict[str, Curve]  # curve of each scalar, by name


def relative(curve: Curve, baseline: Curve, ratio: bool) -> Curve:
    """Take the difference of a curve from the smoothed baseline, or the ratio of the two.

    The baseline is interpolated between two of its values; outside of their range is a gap.
    """
    steps, values = curve
    smoothed = smooth(baseline[1])
    there = np.isfinite(smoothed)
    reference = np.interp(steps, baseline[0][there], smoothed[there], left=np.nan, right=np.nan)
    if not ratio:
        return steps, values - reference
    return steps, values / np.where(reference == 0.0, np.nan, reference)


def last_tenth(curves: Iterable[Curve]) -> float:
    """Take the mean over the last tenth of each curve, NaN if there is no finite value."""
    ends = [values[-max(1, len(values) // 10) :] for _, values in curves]
    there = [value for end in ends for value in end if np.isfinite(value)]
    return float(np.mean(there)) if there else float("nan")


def thin(curve: Curve) -> Curve:
    """Thin a smooth curve to a few hundred points, the last point among them."""
    every = -(-len(curve[0]) // 200)
    start = (len(curve[0]) - 1) % every
    return curve[0][start::every], curve[1][start::every]


def alone(values: np.ndarray) -> np.ndarray:
    """Find the values with a gap on both sides, which no line shows."""
    there = np.pad(np.isfinite(values), 1)
    return there[1:-1] & ~there[:-2] & ~there[2:]


def correlation_of_trends(first: Curve, second: Curve) -> Curve:
    """Correlate two curves within a moving fifth, each smoothed (paper D fig. 3).

    Where a curve does not move, and at its gaps, there is none.

    Args:
        first: Curve of one task's loss.
        second: Curve of another's; the iterations that both have count.

    Returns:
        The correlation at each iteration, from -1 to 1.
    """
    steps, one, other = np.intersect1d(first[0], second[0], return_indices=True)
    a, b = smooth(first[1])[one], smooth(second[1])[other]
    half = max(len(steps) // 5, 3) // 2
    found = np.full(len(steps), np.nan)
    for i in range(half, len(steps) - half):
        x, y = a[i - half : i + half + 1], b[i - half : i + half + 1]
        there = np.isfinite(x) & np.isfinite(y)
        x, y = x[there], y[there]
        if len(x) > 2 and np.ptp(x) > 0.0 and np.ptp(y) > 0.0:
            found[i] = np.corrcoef(x, y)[0, 1]
    return steps, found
