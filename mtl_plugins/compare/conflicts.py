"""Measures of interference over runs: pairs that fight, and what ranks methods like the scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from mtl_plugins.compare.results import Comparison, Result
from mtl_plugins.metrics import ranking_similarity

ANGLE = "mtl/angle/"
MEASURES = {"GDS": "mtl/gds", "GMS": "mtl/gms", "FD": "mtl/fd"}


class Conflict(NamedTuple):
    """How two tasks got on in the runs of a method.

    Attributes:
        share: Share of the measured iterations with an angle of more than 90 degrees.
        cosine: Mean cosine of their gradients.
    """

    share: float
    cosine: float


def conflicts(results: Iterable[Result]) -> dict[tuple[str, str], Conflict]:
    """Measure every pair of tasks over the measured iterations of some runs.

    Left out are iterations in which a task has no loss, as under task allocation: a gradient of 0
    neither agrees nor fights.
    """
    angles: dict[tuple[str, str], list[float]] = {}
    for result in results:
        if result.log is None or not result.done:
            continue
        for name, points in result.log.training.items():
            if name.startswith(ANGLE):
                first, second = name.removeprefix(ANGLE).split("|", 1)
                absent = {
                    step
                    for task in (first, second)
                    for step, loss in result.log.training.get(f"mtl/loss/{task}", {}).items()
                    if loss == 0.0
                }
                finite = [v for s, v in points.items() if math.isfinite(v) and s not in absent]
                angles.setdefault((first, second), []).extend(finite)
    return {
        pair: Conflict(
            sum(v > 90.0 for v in values) / len(values),
            statistics.fmean(math.cos(math.radians(v)) for v in values),
        )
        for pair, values in angles.items()
        if values
    }


def mean_over_training(comparison: Comparison, name: str) -> dict[str, float]:
    """Average a scalar over the iterations and seeds of each method that has it."""
    found = {}
    for method in comparison.methods:
        values = [
            v
            for r in comparison.of(method)
            if r.done
            for v in r.curve(name).values()
            if math.isfinite(v)
        ]
        if values:
            found[method] = statistics.fmean(values)
    return found


def rankings(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Compute the ranking similarity of each measure with each metric (C Table 3).

    Returns:
        By measure and metric, 0.5 (no relation) to 1 (the same or the reverse order of methods).
    """
    found: dict[str, dict[str, float]] = {}
    for label, name in MEASURES.items():
        measured = mean_over_training(comparison, name)
        for column in comparison.columns:
            means = {
                method: statistics.fmean(scores.values())
                for method in measured
                if (scores := comparison.scores(method, column))
            }
            if len(means) > 1:
                common = {method: measured[method] for method in means}
                similarity = ranking_similarity(common, means)
                found.setdefault(label, {})[column.name] = similarity
    return found
