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
    single = [f for f in found if f.difference.seeds == 1]
    found = [f for f in found if f.difference.seeds > 1]
    seeds = min(f.difference.seeds for f in found)
    count = f"{most} seeds" if seeds == most else f"{seeds} to {most} seeds"
    if single:
        said.append(f"One seed in common with the plain sum, and so no test: {_listed(single)}.")
    beyond = [f for f in found if f.differs]
    for f in beyond:
        said.append(
            f"{f.method} is {'better' if f.better else 'worse'} than the plain sum in "
            f"{f.column.name}: {f.difference.mean:+.4g} ± {f.difference.standard_error:.2g} "
            f"(p = {f.adjusted:.2g} after Holm's correction for {len(found)} comparisons)."
        )
    perhaps = [f for f in found if f.difference.beyond_two_errors and not f.differs]
    if perhaps:
        said.append(
            f"Beyond two standard errors, but no more than chance shows in a table of {len(found)} "
            f"comparisons with {count}: {_listed(perhaps)}."
        )
    rest = [f for f in found if not f.difference.beyond_two_errors]
    if rest:
        said.append(f"No difference from the plain sum was seen with {count}: {_listed(rest)}.")
    if not beyond:
        said.append(f"So there is no winner: with {count}, no method differs from the plain sum.")
    unclear = [f for f in found if not f.differs]
    if unclear:
        said.append(
            "Seeds it would take, were the true differences those seen (a rough guess from "
            f"{count}): {_each_needs(unclear)}."
        )
    return said


def _each_needs(unclear: Iterable[Finding]) -> str:
    """Say the seeds for each finding, the fewest first."""
    ordered = sorted(unclear, key=_needed)
    each = [f"{f.needed} for {f.method} in {f.column.name}" for f in ordered[:4] if f.needed]
    if len(each) < len(ordered):
        others = ordered[len(each) :]
        least = _needed(others[0])
        each.append(
            f"{'more than ' if others[0].needed is None else 'from '}{least} for "
            f"{'the others' if each else 'all'}"
        )
    return ", ".join(each)


def _needed(finding: Finding) -> int:
    return finding.needed or MOST_SEEDS


def _listed(some: Iterable[Finding]) -> str:
    return ", ".join(
        f"{f.method} in {f.column.name} ({f.difference.mean:+.4g}"
        + (f" ± {f.difference.standard_error:.2g})" if f.difference.seeds > 1 else ")")
        for f in some
    )


def arrow(finding: Finding | None, margin: float) -> str:
    """Mark a cell as paper C does: ↑ better by more than ``margin``, ↓ worse, – comparable."""
    if finding is None or math.isnan(finding.difference.mean):
        return ""
    if abs(finding.difference.mean) <= margin:
        return "–"
    return "↑" if finding.better else "↓"
