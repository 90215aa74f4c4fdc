"""Scores of a multi-task model against a baseline."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, get_args

Convention = Literal["gain", "loss"]


def delta_m(
    metrics: Mapping[str, Mapping[str, float]],
    baseline: Mapping[str, Mapping[str, float]],
    lower_is_better: Collection[str] = (),
    convention: Convention = "gain",
) -> float:
    """Mean relative change over tasks, of the mean over each task's metrics.

    Args:
        metrics: For each task, its metrics by name.
        baseline: The same of the baseline.
        lower_is_better: Names of the metrics that count errors.
        convention: ``"gain"``: in percent, higher is better (papers B and D); ``"loss"``: a
            fraction, lower is better (paper A).

    Returns:
        The score; 0 for the baseline itself.

    Raises:
        KeyError: The two do not have the same tasks and metrics.
        ValueError: A metric of the baseline is 0, or ``convention`` is unknown.
    """
    if convention not in get_args(Convention):
        raise ValueError(f"convention: expected one of {get_args(Convention)}, got {convention!r}")
    if metrics.keys() != baseline.keys():
        raise KeyError(f"tasks differ: {sorted(metrics)} and, in the baseline, {sorted(baseline)}")
    tasks = []
    for task, scores in metrics.items():
        if scores.keys() != baseline[task].keys():
            raise KeyError(
                f"metrics of {task!r} differ: {sorted(scores)} and, in the baseline, "
                f"{sorted(baseline[task])}"
            )
        changes = []
        for name, score in scores.items():
            reference = baseline[task][name]
            if reference == 0.0:
                raise ValueError(f"{task}.{name} of the baseline is 0: no relative change exists")
            change = (score - reference) / reference
            changes.append(-change if name in lower_is_better else change)
        tasks.append(sum(changes) / len(changes))
    gain = sum(tasks) / len(tasks)
    return 100.0 * gain if convention == "gain" else -gain


def ranking_similarity(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Share of ordered pairs that two rankings order alike (C section 6.3).

    Args:
        first: A score of each item; only the order counts.
        second: Another score of the same items.

    Returns:
        ``max(s, 1 - s)``, in [0.5, 1]: a ranking is as informative as its reverse.

    Raises:
        KeyError: The items differ, or there are fewer than two.
    """
    if first.keys() != second.keys() or len(first) < 2:
        raise KeyError(
            f"two rankings of the same two or more items: {sorted(first)}, {sorted(second)}"
        )
    pairs = [(a, b) for a in first for b in first if a != b]
    agree = sum((first[a] > first[b]) == (second[a] > second[b]) for a, b in pairs)
    return max(agree, len(pairs) - agree) / len(pairs)
