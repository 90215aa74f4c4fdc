"""The benchmark of growth: bytes are asserted, times are not."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import benchmark_scale
import pytest
from commands import run

WIDTHS = {40_000: 100, 3_000: 27}  # four layers of width² weights each
CELLS = [(40_000, 2), (3_000, 5)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_bytes_are_those_of_the_formula(ranks: int) -> None:
    args = argparse.Namespace(rows=4, repeats=1, device="cpu")
    found = {
        (cell, way): sent for cell, way, _, sent in benchmark_scale.over_ranks(ranks, CELLS, args)
    }
    for size, tasks in CELLS:
        width = WIDTHS[size]
        shared, rest, told = 4 * width**2, tasks * (width + 1), 2 * tasks + 1
        numbers = {
            "plain sum": shared + rest,
            "exact": tasks * shared + rest + told,
            "gramian": shared + rest + tasks**2 + told,
            # The first layer as it is, of the others 64 products a row and the mean input.
            "sketch": shared
            + rest
            + tasks * width * (width + 3 * min(width, 64))
            + told
            + (3 * width if width > 64 else 0),
            # A flag for each parameter, of eight bytes, says whether it has a gradient.
            "features": shared + rest + tasks**2 + told + 2 * (4 + 2 * tasks),
        }
        assert {way: found.pop(((size, tasks), way)) for way in numbers} == {
            way: 4 * number for way, number in numbers.items()
        }
    assert not found


def test_the_tables(tmp_path: Path) -> None:
    printed = run(
        "tools/analysis/benchmark_scale.py", "--tasks", "2", "3", "--sizes", "1e4", "1e12",
        "--rows", "4", "--repeats", "1", "--ranks", "1", "2",
        coco=tmp_path,
    )  # fmt: skip
    rows = re.findall(r"^ +10,000 +([23]) +(\d.*) \|(.*)$", printed, re.MULTILINE)
    assert [tasks for tasks, *_ in rows] == ["2", "3"]
    for _, times, peaks in rows:
        assert len(times.split()) == len(peaks.split()) == len(benchmark_scale.WAYS)
    assert printed.count(" equal\n") == 2 * len(benchmark_scale.SYNCED)
    assert "DIFFERENT" not in printed
    assert len(re.findall(r"1,000,000,000,000 +[23]  left out: more than 6 GiB", printed)) == 4
