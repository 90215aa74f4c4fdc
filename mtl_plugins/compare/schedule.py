"""Length of a training, and a schedule stretched to another length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mtl_plugins.compare.experiments import Experiment

POINTS = ("begin", "end", "T_max", "total_iters", "total_steps", "step_size")
LISTS = ("milestones", "periods")


def length(experiment: Experiment) -> tuple[int, str]:
    """Return the length of a training, and its unit: ``"iterations"`` or ``"epochs"``.

    Raises:
        SystemExit: The config says neither.
    """
    if experiment.framework == "detectron2":
        return int(experiment.cfg.SOLVER.MAX_ITER), "iterations"
    train = experiment.cfg.train_cfg
    if train.get("max_iters"):
        return int(train.max_iters), "iterations"
    if not train.get("max_epochs"):
        raise SystemExit("train_cfg: expected max_iters or max_epochs, the length of the training")
    return int(train.max_epochs), "epochs"


def stretched(experiment: Experiment, ratio: float) -> list[str]:
    """Stretch the schedule of a config to another number of iterations or epochs.

    Args:
        experiment: The config.
        ratio: New length of the training over the old one.

    Returns:
        ``KEY=VALUE`` of all that changes: the length, and milestones, warm-up and validations.
    """
    cfg = experiment.cfg
    last, unit = length(experiment)
    last = _times(last, ratio)
    if experiment.framework == "detectron2":
        solver = cfg.SOLVER
        steps = [s for s in (_times(s, ratio) for s in solver.STEPS) if s < last]
        warmup = _times(solver.WARMUP_ITERS, ratio) if solver.WARMUP_ITERS else 0
        return [
            f"SOLVER.MAX_ITER={last}",
            f"SOLVER.STEPS=({''.join(f'{s},' for s in steps)})",
            f"SOLVER.WARMUP_ITERS={warmup}",
        ]
    changes: dict[str, Any] = {f"train_cfg.max_{unit.replace('iterations', 'iters')}": last}
    if "val_interval" in cfg.train_cfg:
        changes["train_cfg.val_interval"] = _times(cfg.train_cfg.val_interval, ratio)
    for key, scheduler in _schedulers("param_scheduler", cfg.get("param_scheduler")):
        for name in POINTS:
            if scheduler.get(name):
                changes[f"{key}.{name}"] = _times(scheduler[name], ratio)
        for name in LISTS:
            if scheduler.get(name):
                several = ",".join(str(_times(value, ratio)) for value in scheduler[name])
                changes[f"{key}.{name}"] = f"[{several}]"
    return [f"{name}={value}" for name, value in changes.items()]


def _schedulers(key: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Yield the schedulers of one, a list, or lists by optimizer, with their dotted keys."""
    if isinstance(node, Mapping) and "type" in node:
        yield key, node
    elif isinstance(node, (Mapping, list, tuple)):
        children = node.items() if isinstance(node, Mapping) else enumerate(node)
        for name, child in children:
            yield from _schedulers(f"{key}.{name}", child)


def _times(value: int, ratio: float) -> int:
    return max(1, round(value * ratio))
