"""Results of runs, read from their logs."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mtl_plugins.compare.columns import Column
from mtl_plugins.compare.frameworks import FRAMEWORKS
from mtl_plugins.compare.logs import Log, LogError, Points
from mtl_plugins.compare.plan import BASELINE, SINGLE
from mtl_plugins.compare.runs import Run, Status
from mtl_plugins.metrics import Convention, delta_m

DELTA = "Δm"
MEASURES = ("mtl/gds", "mtl/gms", "mtl/fd")
OTHERS = ("mtl/", "fast_rcnn/", "mask_rcnn/", "keypoint_head/", "roi_head/", "rpn/", "[metric]")
"""Beginnings of names that Detectron2's training logs, and that are no metrics of an evaluation."""


@dataclass
class Result:
    """Result of one run.

    Attributes:
        run: The run.
        status: State of the run.
        log: Scalars of the training; None without a log.
        metrics: Metrics at the end, by name, finite ones only.
        problem: Sentence on what is wrong with the run; empty for a result that is whole.
    """

    run: Run
    status: Status
    log: Log | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def done(self) -> bool:
        """Whether the run came to its end."""
        return self.status.state == "done"

    def curve(self, name: str) -> Points:
        """Return a scalar by iteration, without the iterations in which a task has no loss.

        Under task allocation such a task is logged with a loss of 0: it is none, and measures of
        its gradient say nothing.
        """
        if self.log is None:
            return {}
        points = self.log.metrics.get(name) or self.log.training.get(name, {})
        if name.startswith("mtl/loss/"):
            return {step: v for step, v in points.items() if v != 0.0}
        if name not in MEASURES:
            return points
        absent = {
            step
            for other, losses in self.log.training.items()
            if other.startswith("mtl/loss/")
            for step, loss in losses.items()
            if loss == 0.0
        }
        return {step: v for step, v in points.items() if step not in absent}

    @property
    def diverged(self) -> str:
        """Sentence on losses that are NaN or infinite; empty if all that were logged are finite."""
        losses: dict[int, bool] = {}
        for name, points in self.log.training.items() if self.log else ():
            if "loss" in name:
                for step, value in points.items():
                    losses[step] = losses.get(step, True) and math.isfinite(value)
        broken = [step for step, finite in losses.items() if not finite]
        if not broken:
            return ""
        return (
            f"{self.run}: diverged: {len(broken)} of {len(losses)} logged losses are not finite, "
            f"the first at iteration {min(broken)}; finite scores of it may mean nothing"
        )

    @property
    def seconds_per_iteration(self) -> float:
        """Median time of an iteration in seconds, without the first record; NaN without a log."""
        times = list(self.log.training.get("time", {}).values()) if self.log else []
        return statistics.median(times[1:] or times) if times else math.nan

    @property
    def memory(self) -> tuple[float, str]:
        """Peak memory in MiB, and of what: the GPU, if the log has it, else the process."""
        reported = list(self.log.training.get("memory", {}).values()) if self.log else []
        if not reported:
            reported = [float(found) for found in _max_mem(self.run)]
        if reported:
            return max(reported), "GPU"
        peak = self.status.peak_bytes
        return (peak / 2**20 if peak else math.nan), "process"


def _max_mem(run: Run) -> list[str]:
    """Find what Detectron2 prints of the GPU's memory in its log."""
    path = run.path / "log.txt"
    text = path.read_text(errors="replace") if path.is_file() else ""
    return re.findall(r"max_mem: (\d+)M", text)


def read(run: Run) -> Result:
    """Read a run as far as it is."""
    result = Result(run, Status.read(run.path))
    if result.status.error:
        result.problem = f"{run}: failed. {result.status.error}"
    elif result.status.state != "done":
        result.problem = f"{run}: not finished ({result.status.state})"
    try:
        result.log = Log(run.path)
        found = FRAMEWORKS[run.framework].test_metrics(run.path)
        if found is None:
            named = [n for scalars in (result.log.metrics, result.log.training) for n in scalars]
            found = {
                name: value
                for name in named
                if "/" in name and not name.startswith(OTHERS)
                if (value := result.log.last(name)) is not None
            }
    except (LogError, OSError, ValueError) as error:
        result.problem = result.problem or f"{run}: {error}"
        return result
    if result.done:
        result.metrics = {
            name: float(value)
            for name, value in found.items()
            if name not in ("time", "data_time")
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
    return result


@dataclass
class Comparison:
    """All results of a plan, with the columns of the table.

    Attributes:
        results: Result of each run.
        columns: Metrics of the table.
        problems: Sentences on runs that failed, or lack a metric.
        convention: Convention of Δm, see :func:`~mtl_plugins.metrics.delta_m`.
        why_no_delta: Reason for which there is no Δm.
    """

    results: list[Result]
    columns: list[Column]
    problems: list[str]
    convention: Convention = "gain"
    why_no_delta: str = ""

    @cached_property
    def delta(self) -> Column | None:
        """Column of Δm; None where it does not exist."""
        return Column(DELTA, "", self.convention == "loss") if self._reference else None

    @cached_property
    def _reference(self) -> dict[str, dict[str, float]]:
        """Mean of each metric over the seeds of tasks alone, or of the plain sum."""
        found: dict[str, dict[str, float]] = {}
        for column in self.columns:
            scores = self.alone(column) if self.has_single else self.scores(BASELINE, column)
            if not scores:
                self.why_no_delta = f"no run of the baseline has {column.name}"
                return {}
            mean = statistics.fmean(scores.values())
            if mean == 0.0 and self.convention != "absolute":
                self.why_no_delta = f"{column.name} of the baseline is 0: no relative change exists"
                return {}
            found.setdefault(column.task, {})[column.name] = mean
        return found

    @property
    def methods(self) -> list[str]:
        """Names of the methods, the plain sum first."""
        names = dict.fromkeys(r.run.name for r in self.results if not r.run.task)
        return sorted(names, key=lambda name: name != BASELINE)

    def of(self, name: str) -> list[Result]:
        """Return the results of a method, seed by seed."""
        return [r for r in self.results if r.run.name == name]

    def scores(self, name: str, column: Column) -> dict[int, float]:
        """Return the values of a metric, or of Δm, by seed, where there are any."""
        if column.name == DELTA:
            return self._deltas(name)
        return {
            r.run.seed: r.metrics[column.name] for r in self.of(name) if column.name in r.metrics
        }

    def _deltas(self, name: str) -> dict[int, float]:
        lower = {c.name for c in self.columns if c.lower}
        found = {}
        for result in self.of(name):
            if whole(result, self.columns):
                scores: dict[str, dict[str, float]] = {}
                for column in self.columns:
                    scores.setdefault(column.task, {})[column.name] = result.metrics[column.name]
                found[result.run.seed] = delta_m(scores, self._reference, lower, self.convention)
        return found

    def alone(self, column: Column) -> dict[int, float]:
        """Return the values of a metric in the runs that train its task alone, by seed."""
        return self.scores(f"{SINGLE}{column.task}", column)

    @property
    def has_single(self) -> bool:
        """Whether tasks were trained alone."""
        return any(r.run.task for r in self.results)


def whole(result: Result, columns: Sequence[Column]) -> bool:
    """Tell whether a run has all of its columns."""
    return all(c.name in result.metrics for c in _own(result.run, columns))


def _own(run: Run, columns: Iterable[Column]) -> list[Column]:
    return [c for c in columns if not run.task or c.task == run.task]


def compare(
    results: Sequence[Result], columns: Sequence[Column], convention: Convention = "gain"
) -> Comparison:
    """Put results together, and say which of them lack something."""
    problems = []
    _leave_out_copies(results)
    for result in results:
        missing = [c.name for c in _own(result.run, columns) if c.name not in result.metrics]
        if not result.problem and missing:
            has = ", ".join(sorted(result.metrics)) or "none"
            result.problem = (
                f"{result.run}: has no finite {', '.join(missing)} (it has {has}); the run is left "
                "out of these columns"
            )
        problems += [said for said in (result.problem, result.diverged) if said]
    return Comparison(list(results), list(columns), problems, convention)


def _leave_out_copies(results: Sequence[Result]) -> None:
    """Take the metrics from runs that trained exactly as another seed of the method did."""
    seen: dict[tuple[str, str], Run] = {}
    for result in results:
        training = result.log.training if result.log and result.done else {}
        losses = training.get("loss") or training.get("total_loss") or {}
        if len(set(losses.values())) > 1:
            first = seen.setdefault((result.run.name, repr(losses)), result.run)
            if first is not result.run:
                result.metrics = {}
                result.problem = result.problem or (
                    f"{result.run}: trained exactly as {first} did, so that the seed has no effect "
                    "and the run proves nothing; it is left out. Does the config draw nothing?"
                )


def found_metrics(results: Iterable[Result]) -> list[str]:
    """List the metrics of the plain sum's runs; of the others, if none of these is done."""
    every = [r for r in results if r.metrics]
    chosen = [r for r in every if r.run.name == BASELINE] or every
    return sorted({name for result in chosen for name in result.metrics})
