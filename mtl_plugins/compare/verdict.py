"""Verdict: differences that the seeds show, and those they do not, in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from mtl_plugins.compare.columns import Column
from mtl_plugins.compare.plan import BASELINE
from mtl_plugins.compare.results import Comparison
from mtl_plugins.compare.statistics import (
    ALPHA,
    MOST_SEEDS,
    Difference,
    holm,
    paired_difference,
    seeds_needed,
)


class Finding(NamedTuple):
    """A method against the plain sum in one metric.

    Attributes:
        method: Name of the method.
        column: The metric.
        difference: Difference from the plain sum, paired by seed.
        adjusted: Probability of so large a difference by chance somewhere in the table (Holm).
        needed: Seeds it would take, see :func:`~mtl_plugins.compare.statistics.seeds_needed`.
    """

    method: str
    column: Column
    difference: Difference
    adjusted: float
    needed: int | None

    @property
    def differs(self) -> bool:
        """Whether the difference is beyond two standard errors, and beyond chance in the table."""
        return self.difference.beyond_two_errors and self.adjusted <= ALPHA

    @property
    def better(self) -> bool:
        return (self.difference.mean < 0.0) == self.column.lower


def findings(comparison: Comparison) -> list[Finding]:
    """Compare every method with the plain sum in every column, and in Δm against tasks alone."""
    columns = list(comparison.columns)
    if comparison.has_single and comparison.delta:
        columns.append(comparison.delta)
    pairs = []
    for method in comparison.methods:
        for column in columns if method != BASELINE else ():
            ours, theirs = (comparison.scores(name, column) for name in (method, BASELINE))
            seeds = sorted(ours.keys() & theirs.keys())
            if seeds:
                values = [ours[s] for s in seeds], [theirs[s] for s in seeds]
                pairs.append((method, column, paired_difference(*values)))
    adjusted = holm([difference.p for *_, difference in pairs])
    return [
        Finding(method, column, difference, p, seeds_needed(difference, len(pairs)))
        for (method, column, difference), p in zip(pairs, adjusted, strict=True)
    ]


def sentences(comparison: Comparison) -> list[str]:
    """Say which methods differ from the plain sum, which do not, and what it would take."""
    found = findings(comparison)
    if not found:
        return ["No method can be compared with the plain sum: no seed of both is done."]
    most = max(f.difference.seeds for f in found)
    said = [
        f"{column.name} is 0 in every run: nothing has been learnt that it could measure."
        for column in comparison.columns
        if not any(v for m in comparison.methods for v in comparison.scores(m, column).values())
    ]
    compared = {f.method for f in found}
    if missing := [m for m in comparison.methods if m not in compared and m != BASELINE]:
        said.append(f"No seed in common with the plain sum: {', '.join(missing)}.")
    if most == 1:
        largest = max(found, key=lambda f: abs(f.difference.mean))
        said.append(
            f"One seed: no difference can be told from noise, not even the largest, "
            f"{largest.difference.mean:+.4g} {largest.column.name} of {largest.method}. Two seeds "
            "are the least for a test, five or more are advisable."
        )
        return said
    single = sum(f.difference.seeds == 1 for f in found)
    found = [f for f in found if f.difference.seeds > 1]
    seeds = min(f.difference.seeds for f in found)
    count = f"{most} seeds" if seeds == most else f"{seeds} to {most} seeds"
    if single:
        said.append(f"One seed in common with the plain sum, and so no test: {single} differences.")
    beyond = [f for f in found if f.differs]
    for f in beyond:
        said.append(
            f"{f.method} is {'better' if f.better else 'worse'} than the plain sum in "
            f"{f.column.name}: {f.difference.mean:+.4g} ± {f.difference.standard_error:.2g} "
            f"(p = {f.adjusted:.2g} after Holm's correction for {len(found)} comparisons)."
        )
    if not beyond:
        said.append(f"There is no winner: with {count}, no method differs from the plain sum.")
    unclear = [f for f in found if not f.differs]
    if unclear:
        perhaps = sum(f.difference.beyond_two_errors for f in unclear)
        said.append(
            f"{len(unclear)} of {len(found)} differences are no more than chance shows with "
            f"{count}, {perhaps or 'none'} of them beyond two standard errors. {_seeds(unclear)}"
        )
    return said


def _seeds(unclear: Iterable[Finding]) -> str:
    """Say how many seeds would settle the difference that takes the fewest."""
    first = min(unclear, key=lambda f: f.needed or MOST_SEEDS + 1)
    if first.needed is None:
        return f"Each would take more than {MOST_SEEDS} seeds, were the true ones those seen."
    return (
        f"{first.method} in {first.column.name} would take the fewest seeds, {first.needed}, were "
        "the true difference the one seen: a rough guess."
    )


def arrow(finding: Finding | None, margin: float) -> str:
    """Mark a cell as paper C does: ↑ better by more than ``margin``, ↓ worse, – comparable."""
    if finding is None or math.isnan(finding.difference.mean):
        return ""
    if abs(finding.difference.mean) <= margin:
        return "–"
    return "↑" if finding.better else "↓"
