"""Progress of the runs: a live table in a terminal, a line for each change elsewhere."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from mtl_plugins.compare.execute import last_lines
from mtl_plugins.compare.logs import LogError, is_training, log_files
from mtl_plugins.compare.runs import Run, Status

EVERY = 30.0
"""Seconds between two lines on a run that goes on."""


def row(run: Run) -> tuple[str, ...]:
    """Return method, seed, state, iteration, time to go and newest metric of a run.

    Read are the ends of logs only, since a log of a long training is long.
    """
    status = Status.read(run.path)
    iteration = eta = metric = ""
    try:
        file = log_files(run.path)[-1]
        for line in last_lines(file, 30, width=10_000).splitlines():
            with suppress(json.JSONDecodeError):
                record = json.loads(line)
                if is_training(record):
                    iteration = str(record.get("step", record.get("iteration", -1) + 1))
                main = next((n for n in record if re.search(r"mAP$|/AP$|mIoU$", n)), None)
                main = main or next((n for n in ("loss", "total_loss") if n in record), None)
                if main is not None:
                    metric = f"{main} {record[main]:.4g}"
        if status.state == "training":
            found = re.findall(
                r"eta: ((?:\d+ days?, )?[\d:]+)", last_lines(run.path / "train.log", 30)
            )
            eta = found[-1] if found else ""
    except (LogError, OSError, TypeError, ValueError):
        pass  # a run that has just begun
    return run.name, str(run.seed), status.state, iteration, eta, metric


class Progress:
    """Shows the runs until they are done; a context manager.

    Args:
        runs: Runs to show.
        live: Whether to draw a live table; by default where there is a terminal and Rich.
    """

    def __init__(self, runs: Sequence[Run], live: bool | None = None) -> None:
        self.runs = runs
        if live is None:
            live = sys.stdout.isatty() and find_spec("rich") is not None
        self._live: Any = None
        if live:
            from rich.live import Live

            self._live = Live(self._table(), refresh_per_second=2)
        self._said: dict[Run, tuple[str, float, str]] = {}

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        if self._live:
            self._live.stop()

    def update(self) -> None:
        """Show the state of now."""
        if self._live:
            self._live.update(self._table())
            return
        for run in self.runs:
            name, seed, state, iteration, eta, metric = row(run)
            before, when, shown = self._said.get(run, ("new", 0.0, ""))
            due = state == "training" and iteration != shown and time.monotonic() - when > EVERY
            if state != before or due:
                parts = [f"iteration {iteration}" * bool(iteration), f"eta {eta}" * bool(eta)]
                rest = ", ".join(part for part in (*parts, metric) if part)
                print(f"{name}/{seed}: {state}{f': {rest}' if rest else ''}", flush=True)
                self._said[run] = (state, time.monotonic(), iteration)

    def _table(self) -> Any:
        from rich.table import Table

        table = Table("method", "seed", "state", "iteration", "eta", "newest")
        colours: Mapping[str, str] = {"done": "green", "failed": "red", "training": "yellow"}
        for run in self.runs:
            cells = row(run)
            table.add_row(*cells, style=colours.get(cells[2]))
        return table
