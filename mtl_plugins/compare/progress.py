"""Progress of the runs: a live table in a terminal, a line for each change elsewhere."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from mtl_plugins.compare.execute import last_lines
from mtl_plugins.compare.logs import Log, LogError
from mtl_plugins.compare.runs import Run, Status

EVERY = 30.0
"""Seconds between two lines on a run that goes on."""


def row(run: Run) -> tuple[str, ...]:
    """Return method, seed, state, iteration, time to go and newest metric of a run."""
    status = Status.read(run.path)
    iteration = eta = metric = ""
    if status.state != "new":
        try:
            log = Log(run.path)
            iteration = str(log.iteration or "")
            scalars = log.metrics or {n: v for n, v in log.training.items() if "/AP" in n}
            main = next((n for n in scalars if re.search(r"mAP$|/AP$|mIoU$", n)), None)
            if main is not None:
                metric = f"{main} {log.last(main):.4g}"
            elif "loss" in log.training:
                metric = f"loss {log.last('loss'):.4g}"
        except (LogError, OSError):
            pass
        path = run.path / "train.log"
        if status.state == "training" and path.is_file():
            found = re.findall(r"eta: ((?:\d+ days?, )?[\d:]+)", last_lines(path, 30))
            eta = found[-1] if found else ""
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
