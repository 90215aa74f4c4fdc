"""Tables of a comparison as text cells, for the page, for Markdown and for the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from mtl_plugins.compare.columns import Column, in_percent, known_column
from mtl_plugins.compare.conflicts import conflicts, rankings
from mtl_plugins.compare.plan import BASELINE
from mtl_plugins.compare.results import DELTA, Comparison
from mtl_plugins.compare.statistics import MOST_SEEDS, estimate
from mtl_plugins.compare.verdict import Finding, arrow, findings
from mtl_plugins.tasks import TaskGroups

MARGIN = 0.01


class Table(NamedTuple):
    """A table with a title and a sentence on how to read it."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]


def number(values: Sequence[float]) -> str:
    """Format a mean with its standard error; an en dash without values."""
    mean, error = estimate(values)
    if math.isnan(mean):
        return "–"
    mean = 0.0 if abs(mean) < 1e-12 else mean  # Δm of the baseline, but for rounding
    return f"{mean:.4g}" if math.isnan(error) else f"{mean:.4g} ± {error:.2g}"


def scores(comparison: Comparison) -> Table:
    """Make the table of the papers: methods and metrics, Δm, and marks against the plain sum."""
    found = {(f.method, f.column.name): f for f in findings(comparison)}
    columns = [*comparison.columns, *([comparison.delta] if comparison.delta else [])]

    def cell(method: str, column: Column) -> str:
        text = number(list(comparison.scores(method, column).values()))
        finding = found.get((method, column.name))
        margin = MARGIN * (100.0 if _percent(comparison, column) else 1.0)
        mark = arrow(finding, margin) if text != "–" else ""
        star = "*" if finding is not None and finding.differs else ""
        return " ".join(part for part in (text, mark + star) if part)

    rows = []
    if comparison.has_single:
        alone = [number(list(comparison.alone(c).values())) for c in comparison.columns]
        rows.append(["tasks alone", *alone, *(["0"] if comparison.delta else [])])
    for method in comparison.methods:
        rows.append([method, *(cell(method, column) for column in columns)])
    baseline = "the tasks alone" if comparison.has_single else "the plain sum"
    unit = {"gain": "%, higher is better", "loss": "a fraction, lower is better"}.get(
        comparison.convention, "absolute, higher is better"
    )
    delta = f"Δm is against {baseline} ({unit})."
    if comparison.delta is None:
        delta = f"There is no Δm: {comparison.why_no_delta}."
    note = (
        f"Mean ± standard error over seeds. Against the plain sum: ↑ better or ↓ worse by more "
        f"than {MARGIN} of the metric's range, – within it (paper C); * a difference that is "
        f"beyond chance in this table (paired t-test, Holm). {delta}"
    )
    head = ["method", *(f"{c.name} {c.arrow}{f' ({c.task})' if c.task else ''}" for c in columns)]
    return Table("Scores", note, head, rows)


def differences(comparison: Comparison) -> Table | None:
    """Make the table of all differences from the plain sum; None where there are none."""

    def row(f: Finding) -> list[str]:
        mean, error = f.difference.mean, f.difference.standard_error
        tested = f.difference.seeds > 1
        said = "no difference seen" if tested else "one seed: no test"
        if f.differs:
            said = "better" if f.better else "worse"
        elif tested and f.difference.beyond_two_errors:
            said = "as chance shows"
        needed = str(f.needed or f"> {MOST_SEEDS}") if tested and not f.differs else "–"
        return [
            *(f.method, f.column.name, f"{mean:+.4g} ± {error:.2g}" if tested else f"{mean:+.4g}"),
            *(f"{f.adjusted:.2g}" if tested else "–", str(f.difference.seeds), said, needed),
        ]

    rows = [row(f) for f in findings(comparison)]
    note = (
        "Mean ± standard error of the difference, paired by seed; p of a paired t-test after "
        "Holm's correction. 'As chance shows': beyond two standard errors, but not beyond chance "
        "in a table of so many. Seeds needed: a rough guess, were the true difference the one seen."
    )
    head = ["method", "metric", "difference", "p (Holm)", "seeds", "against the sum", "needed"]
    return Table("Differences from the plain sum", note, head, rows) if rows else None


def _percent(comparison: Comparison, column: Column) -> bool:
    """Tell whether values are percentages; of metrics of one's own, by their size."""
    if column.name == DELTA:
        return comparison.convention == "gain"
    if column.lower or known_column(column.name, TaskGroups(None)):
        return not column.lower and in_percent(column.name)
    values = [v for m in comparison.methods for v in comparison.scores(m, column).values()]
    return any(abs(v) > 1.5 for v in values)


def cost(comparison: Comparison) -> Table:
    """Make the table of time and memory."""
    rows = []
    base = statistics.fmean(_times(comparison, BASELINE) or [0.0])
    kinds = set()
    for method in comparison.methods:
        results = [r for r in comparison.of(method) if r.log is not None and r.done]
        times = _times(comparison, method)
        ratio = f"{statistics.fmean(times) / base:.2f}" if times and base else "–"
        memory = [r.memory for r in results if not math.isnan(r.memory[0])]
        kinds |= {kind for _, kind in memory}
        # A run that was killed does not know the seconds before.
        seconds = [r.status.seconds for r in results if r.status.attempts == 1]
        rows.append(
            [
                method,
                number(times),
                ratio,
                f"{max(m for m, _ in memory):.0f}" if memory else "–",
                f"{statistics.fmean(seconds):.0f}" if seconds else "–",
            ]
        )
    note = (
        "Median time of an iteration, with the measurement of conflicts on the iterations that "
        f"log it; peak memory of the {' and the '.join(sorted(kinds)) or 'process'}; seconds of a "
        "training from start to end."
    )
    return Table("Cost", note, ["method", "s/iteration", "× sum", "MiB", "s/training"], rows)


def _times(comparison: Comparison, method: str) -> list[float]:
    times = (r.seconds_per_iteration for r in comparison.of(method) if r.done)
    return [t for t in times if not math.isnan(t)]


def fights(comparison: Comparison) -> list[Table]:
    """Make the matrix of the plain sum's tasks, and a table of pairs for all methods."""
    every = {method: conflicts(comparison.of(method)) for method in comparison.methods}
    every = {method: pairs for method, pairs in every.items() if pairs}
    if not every:
        return []
    made = []
    method = BASELINE if BASELINE in every else next(iter(every))
    tasks = list(dict.fromkeys(task for pair in every[method] for task in pair))
    rows = []
    for i, first in enumerate(tasks):
        cells = []
        for j, second in enumerate(tasks):
            found = every[method].get((first, second)) or every[method].get((second, first))
            if i == j or found is None:
                cells.append("")
            else:
                cells.append(f"{found.share:.0%}" if i < j else f"{found.cosine:+.3f}")
        rows.append([first, *cells])
    note = (
        f"In the runs of {method}. Right of the diagonal: share of the measured iterations in "
        "which the gradients were in conflict (more than 90°). Left of it: mean cosine."
    )
    made.append(Table("Which tasks fight", note, ["", *tasks], rows))
    pairs = list(dict.fromkeys(pair for found in every.values() for pair in found))
    rows = [
        [
            f"{a} – {b}",
            *(
                f"{c.share:.0%}, {c.cosine:+.3f}" if (c := found.get((a, b))) else "–"
                for found in every.values()
            ),
        ]
        for a, b in pairs
    ]
    note = "Share of iterations in conflict, and mean cosine."
    made.append(Table("Conflicts under each method", note, ["pair", *every], rows))
    return made


def similarities(comparison: Comparison) -> Table | None:
    """Make the table of ranking similarities; None with fewer than two methods that log them."""
    found = rankings(comparison)
    if not found:
        return None
    rows = [
        [c.name, *(f"{of[c.name]:.2f}" if c.name in of else "–" for of in found.values())]
        for c in comparison.columns
    ]
    note = (
        "Share of pairs of methods that a measure orders as the metric does, or reversed (paper C, "
        "Table 3): 0.5 says nothing, 1 is the same order. Few methods reach high values by chance."
    )
    return Table("Do the measures predict the scores?", note, ["metric", *found], rows)


def tables(comparison: Comparison) -> list[Table]:
    """Make all tables, in the order of the report."""
    some = (differences(comparison), *fights(comparison), similarities(comparison))
    return [scores(comparison), cost(comparison), *(table for table in some if table)]


def as_text(table: Table) -> str:
    """Lay a table out for a terminal."""
    rows = [table.head, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.head))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
