"""Engines that run what a plan wants: here, on a Ray cluster, or under Slurm.

An engine has one method, ``submit``; what it returns has the ``done`` and ``result`` of a future.
"""

from __future__ import annotations

from typing import Protocol

from mtl_plugins.compare.runs import Run


class Pending(Protocol):
    """A run that was submitted."""

    def done(self) -> bool:
        """Tell whether the run has ended."""

    def result(self) -> str:
        """Wait for the run; return its error, empty if it is done."""


class Engine(Protocol):
    """Runs what it gets, as many at a time as there is room for."""

    def submit(self, run: Run) -> Pending:
        """Submit a run; it may have to wait."""

    def close(self) -> None:
        """Stop what is running."""
