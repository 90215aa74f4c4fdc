"""Scores of a multi-task model against a baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

Convention = Literal["gain", "loss", "absolute"]
Scores = Mapping[str, Mapping[str, float]]  # metrics of each task, by name

LOWER_IS_BETTER = frozenset(
    {
        *("abs_err", "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog"),  # depth
        *("mean_angle", "median_angle"),  # normals
        "loss",  # edges
    }
)
"""Names of the metrics of dense prediction that count errors; every other one counts successes."""

_ACCURACIES = ("mIoU", "aAcc")
_ERRORS = ("abs_err", "abs_rel")
_ANGLES = ("mean_angle", "median_angle", "within_11.25", "within_22.5", "within_30")
PAPER_METRICS: dict[str, dict[str, tuple[str, ...]]] = {
    "A NYUv2": {"sem_seg": _ACCURACIES, "depth": _ERRORS, "normals": _ANGLES},
    "B NYUv2": {"sem_seg": ("mIoU",), "depth": ("rmse",)},
    "B Cityscapes": {"sem_seg": ("mIoU",), "depth": ("abs_err",)},
    "D NYUD": {"sem_seg": ("mIoU",), "depth": ("rmse",), "normals": ("mean_angle",)},
    "D PASCAL": {
        "sem_seg": ("mIoU",),
        "human_parts": ("mIoU",),
        "saliency": ("mIoU",),
        "normals": ("mean_angle",),
    },
    "D Cityscapes": {"sem_seg": _ACCURACIES, "depth": _ERRORS},
}
"""Metrics by task that a paper's Δm counts. Edges count in none."""


class Estimate(NamedTuple):
    """A mean over seeds, with its standard error.

    A format applies to both numbers: ``f"{estimate:.1%}"``.

    Attributes:
        mean: Mean over the seeds.
        standard_error: Standard error of the mean; NaN of one seed.
    """

    mean: float
    standard_error: float

    def __str__(self) -> str:
        return format(self)

    def __format__(self, spec: str) -> str:
        return " ± ".join(format(number, spec or ".2f") for number in self)


def delta_m(
    metrics: Scores,
    baseline: Scores,
    lower_is_better: Collection[str] = LOWER_IS_BETTER,
    convention: Convention = "gain",
) -> float:
    """Compute the mean change over tasks, of the mean over each task's metrics.

    The change is relative to the baseline, except in paper B's tables.

    Args:
        metrics: Metrics of each task, by name.
        baseline: Metrics of each task in the baseline, by name.
        lower_is_better: Names of the metrics that count errors.
        convention: Unit and sign of the score. ``"gain"``: in percent, higher is better (paper D);
            ``"loss"``: a fraction, lower is better (paper A); ``"absolute"``: the difference
            itself, higher is better (paper B), which mixes the metrics' units: metres with percent.
            :data:`PAPER_METRICS` holds the metrics that a paper counts.

    Returns:
        The score; 0 for the baseline itself.

    Raises:
        KeyError: Metrics and baseline do not have the same tasks and metrics.
        ValueError: A metric of the baseline is 0 where changes are relative, or ``convention`` is
            unknown.
    """
    if convention not in get_args(Convention):
        raise ValueError(f"convention: expected one of {get_args(Convention)}, got {convention!r}")
    _check_alike(metrics, baseline)
    tasks = []
    for task, scores in metrics.items():
        changes = []
        for name, score in scores.items():
            reference = baseline[task][name]
            change = score - reference
            if convention != "absolute":
                if reference == 0.0:
                    raise ValueError(
                        f"{task}.{name} of the baseline is 0: no relative change exists"
                    )
                change /= reference
            changes.append(-change if name in lower_is_better else change)
        tasks.append(sum(changes) / len(changes))
    gain = sum(tasks) / len(tasks)
    return {"gain": 100.0 * gain, "loss": -gain, "absolute": gain}[convention]


def delta_m_over_seeds(
    runs: Sequence[Scores],
    baselines: Sequence[Scores],
    lower_is_better: Collection[str] = LOWER_IS_BETTER,
    convention: Convention = "gain",
) -> Estimate:
    """Compute :func:`delta_m` of each seed against the mean of the baseline's seeds.

    The error is that of the method alone; the baseline counts as known. The errors in paper A are
    larger than the errors of its metrics allow: they seem to include the baseline's.

    Args:
        runs: Metrics of each seed of the method.
        baselines: Metrics of each seed of the baseline, which may have other or more seeds.
        lower_is_better: Names of the metrics that count errors.
        convention: Unit and sign of the score, see :func:`delta_m`.

    Raises:
        KeyError: Two seeds do not have the same tasks and metrics.
        ValueError: No seed is given, a metric of the baseline is 0, or ``convention`` is unknown.
    """
    for name, seeds in (("baselines", baselines), ("runs", runs)):
        if not seeds:
            raise ValueError(f"{name}: no seed")
        for i, seed in enumerate(seeds):
            _check_alike(seed, baselines[0], f"{name}[{i}]: ")
    reference = {
        task: {name: statistics.fmean(seed[task][name] for seed in baselines) for name in scores}
        for task, scores in baselines[0].items()
    }
    scores = [delta_m(run, reference, lower_is_better, convention) for run in runs]
    spread = statistics.stdev(scores) if len(scores) > 1 else math.nan
    return Estimate(statistics.fmean(scores), spread / math.sqrt(len(scores)))


def _check_alike(metrics: Scores, baseline: Scores, where: str = "") -> None:
    if metrics.keys() != baseline.keys():
        raise KeyError(
            f"{where}tasks differ: {sorted(metrics)} and, in the baseline, {sorted(baseline)}"
        )
    for task, scores in metrics.items():
        if scores.keys() != baseline[task].keys():
            raise KeyError(
                f"{where}metrics of {task!r} differ: {sorted(scores)} and, in the baseline, "
                f"{sorted(baseline[task])}"
            )


def ranking_similarity(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Compute the share of ordered pairs that two rankings order alike (C section 6.3).

    Args:
        first: Score of each item; only the order counts.
        second: Other score of the same items.

    Returns:
        ``max(s, 1 - s)``, in [0.5, 1]: a ranking is as informative as its reverse.

    Raises:
        KeyError: The items differ, or there are fewer than two.
    """
    if first.keys() != second.keys() or len(first) < 2:
        raise KeyError(
            f"expected scores of the same items, at least two: {sorted(first)}, {sorted(second)}"
        )
    pairs = [(a, b) for a in first for b in first if a != b]
    agree = sum((first[a] > first[b]) == (second[a] > second[b]) for a, b in pairs)
    return max(agree, len(pairs) - agree) / len(pairs)
