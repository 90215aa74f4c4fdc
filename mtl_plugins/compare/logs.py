"""Logs of runs: MMEngine's ``*/vis_data/scalars.json`` and Detectron2's ``metrics.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

Points = dict[int, float]
"""Values of a scalar by iteration, counted from 1."""


class LogError(ValueError):
    """A log that is not there or cannot be read."""


def log_files(run: Path) -> list[Path]:
    """Find the scalar logs of a work directory, oldest first.

    MMEngine begins a new log at each start and resume, Detectron2 goes on with the old one.

    Raises:
        LogError: There is no log.
    """
    files = sorted(run.glob("*/vis_data/scalars.json")) or list(run.glob("metrics.json"))
    if not files:
        raise LogError(
            f"{run}: no */vis_data/scalars.json in it and no metrics.json; is it the work_dir (in "
            "Detectron2, OUTPUT_DIR) of a run?"
        )
    return files


def records(file: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Read the lines of a log: an iteration, or MMEngine's epoch for a validation, and scalars.

    Raises:
        LogError: A line is no JSON; only the last may be cut short, by a kill.
    """
    lines = file.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise LogError(f"{file}, line {number}: expected JSON, found {error}") from None
            continue
        # Detectron2 counts from 0.
        step = record.pop("step") if "step" in record else record.pop("iteration", -1) + 1
        yield step, record


def is_training(record: dict[str, float]) -> bool:
    """Tell a record of the training from that of a validation, which has a time as well."""
    return any(name == "lr" or re.match(r"mtl/|loss|total_loss", name) for name in record)


def _until(scalars: dict[str, Points], last: int) -> dict[str, Points]:
    """Drop what comes after an iteration."""
    return {
        name: {step: value for step, value in points.items() if step <= last}
        for name, points in scalars.items()
    }


class Log:
    """The scalars of a run through all of its resumes.

    After a kill, iterations since the last checkpoint are trained again and logged again; the
    first time does not count.

    Attributes:
        training: Scalars logged in training, by name.
        metrics: Scalars of validations, by name and by iteration: where MMEngine says the epoch, or
            0 (``log_metric_by_epoch``), by the iteration that was logged last.

    Args:
        run: Work directory.

    Raises:
        LogError: There is no log, or a line of one is no JSON.
    """

    def __init__(self, run: Path) -> None:
        self.training: dict[str, Points] = {}
        self.metrics: dict[str, Points] = {}
        last = -1
        for file in log_files(run):
            found = list(records(file))
            begin = next((step for step, record in found if is_training(record)), last + 1)
            at = self._before(begin)  # a resumed run may begin with a validation
            for step, record in found:
                if not is_training(record):
                    self._add(self.metrics, max(step, at), record)
                    continue
                if step < last or (step == last and self._has(step, record)):
                    self.training = _until(self.training, step - 1)
                    self.metrics = _until(self.metrics, step - 1)
                last = at = step
                self._add(self.training, step, record)

    def _before(self, step: int) -> int:
        """Return the last iteration before one that was logged; 0 if there was none."""
        return max((s for points in self.training.values() for s in points if s < step), default=0)

    def _has(self, step: int, record: dict[str, float]) -> bool:
        return any(step in self.training.get(name, ()) for name in record)

    @staticmethod
    def _add(scalars: dict[str, Points], step: int, record: dict[str, float]) -> None:
        for name, value in record.items():
            if isinstance(value, (int, float)):
                scalars.setdefault(name, {})[step] = float(value)

    def last(self, name: str) -> float | None:
        """Return the metric of the last validation; None if there was none."""
        # Detectron2 writes metrics on a line of their own, or beside the losses.
        points = self.metrics.get(name) or self.training.get(name)
        return points[max(points)] if points else None

    @property
    def iteration(self) -> int:
        """The last iteration that was logged."""
        return max((max(points) for points in self.training.values() if points), default=0)
