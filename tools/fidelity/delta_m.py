"""Compute the Δm of the tables of papers A, B and D from their printed metrics.

    python tools/fidelity/delta_m.py

A row holds if the printed Δm is possible with metrics that round to the printed ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from fidelity.published import TABLES, Table  # noqa: E402

from mtl_plugins.metrics import LOWER_IS_BETTER, Scores, delta_m  # noqa: E402


class Row(NamedTuple):
    """Row of a table, computed again.

    Attributes:
        name: Method.
        printed: Δm in print.
        computed: Δm of the printed metrics.
        lowest: Least Δm of metrics that round to the printed ones, less half a printed unit.
        highest: Largest, likewise.
    """

    name: str
    printed: float
    computed: float
    lowest: float
    highest: float

    @property
    def holds(self) -> bool:
        """Whether rounding explains the difference between print and computation."""
        return self.lowest <= self.printed <= self.highest


def half_unit(printed: str) -> float:
    """Return half a unit of the last printed digit."""
    return 0.5 * 10.0 ** -len(printed.partition(".")[2])


def rows_of(table: Table) -> Iterator[Row]:
    """Compute each row of a table again."""
    names = list(chain.from_iterable(table.metrics.values()))

    def scores(columns: str, shift: int = 0) -> Scores:
        """Nest the columns; a shift of +1 makes each as good as its rounding allows, -1 as bad."""
        values = {}
        texts = iter(columns.split())
        for task, metrics in table.metrics.items():
            values[task] = {}
            for name in metrics:
                text = next(texts)
                sign = -shift if name in LOWER_IS_BETTER else shift
                values[task][name] = float(text) + sign * half_unit(text)
        return values

    def score(columns: str, shift: int = 0) -> float:
        metrics, baseline = scores(columns, shift), scores(table.baseline, -shift)
        return table.factor * delta_m(metrics, baseline, convention=table.convention)

    for line in table.rows.strip().splitlines():
        name, printed, columns = (cell.strip() for cell in line.split("|"))
        assert len(columns.split()) == len(names), line
        ends = sorted((score(columns, 1), score(columns, -1)))
        unit = half_unit(printed) * (1.0 + 1e-9)
        yield Row(name, float(printed), score(columns), ends[0] - unit, ends[1] + unit)


def main() -> None:
    held = total = 0
    for table in TABLES:
        print(f"\n{table.name}")
        for row in rows_of(table):
            total += 1
            held += row.holds
            verdict = "" if row.holds else f"  no: {row.lowest:.2f} to {row.highest:.2f} possible"
            print(
                f"  {row.name:28} printed {row.printed:7.2f}, computed {row.computed:7.2f}{verdict}"
            )
    print(f"\n{held} of {total} rows hold")


if __name__ == "__main__":
    main()
