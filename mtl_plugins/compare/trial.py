"""A few iterations of a method: what an iteration takes, and what a checkpoint weighs."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

from mtl_plugins.compare.execute import GUARD, last_lines
from mtl_plugins.compare.experiments import Experiment
from mtl_plugins.compare.frameworks import FRAMEWORKS
from mtl_plugins.compare.logs import Log, LogError
from mtl_plugins.compare.runs import Run, write_text

ITERATIONS = 6
OPTIONS = {
    "openmmlab": (
        "default_hooks.logger.type=LoggerHook",
        "default_hooks.logger.interval=1",
        "log_processor.window_size=1",
        "default_hooks.checkpoint.by_epoch=False",
        f"default_hooks.checkpoint.interval={ITERATIONS}",
        "default_hooks.checkpoint.max_keep_ckpts=1",
    ),
    "detectron2": ("SOLVER.CHECKPOINT_PERIOD=20",),  # logs a median every 20 iterations
}


@dataclass
class Trial:
    """Measurements of a few iterations.

    Attributes:
        seconds: Median seconds of an iteration; 0 if it failed.
        checkpoint: Bytes of a checkpoint; 0 if none was written in time.
        error: End of the log, if it failed.
    """

    seconds: float = 0.0
    checkpoint: int = 0
    error: str = ""


def trial(run: Run, folder: Path, timeout: float = 600.0) -> Trial:
    """Train a few iterations of a run elsewhere and stop; the result is kept for later calls.

    Args:
        run: The run.
        folder: Folder of all trials.
        timeout: Seconds after which a trial counts as failed.
    """
    kept = folder / f"{run.name}-{crc32(repr(run.options).encode()):08x}.json"
    if kept.is_file():
        return Trial(**json.loads(kept.read_text()))
    work = folder / run.name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    short = replace(run, folder=str(work), options=(*run.options, *OPTIONS[run.framework]))
    framework = FRAMEWORKS[run.framework]
    with (work / "train.log").open("w") as log:
        guard = subprocess.Popen(
            [sys.executable, str(GUARD), str(log.fileno()), *framework.train(short)],
            cwd=run.where,
            env=os.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(log.fileno(),),
        )
        assert guard.stdin is not None
        end = time.monotonic() + timeout
        try:
            while guard.poll() is None and time.monotonic() < end:
                if framework.checkpoint(work) and _times(work):
                    break
                time.sleep(0.2)
        finally:
            guard.stdin.close()
            guard.wait()
    found = Trial()
    if times := _times(work):
        found.seconds = statistics.median(times[1:] or times)
        checkpoint = framework.checkpoint(work)
        found.checkpoint = checkpoint.stat().st_size if checkpoint else 0
        write_text(kept, json.dumps(asdict(found)))
    else:
        found.error = last_lines(work / "train.log")
    shutil.rmtree(work, ignore_errors=True)
    return found


def _times(work: Path) -> list[float]:
    try:
        return list(Log(work).training.get("time", {}).values())
    except LogError:
        return []


def iterations(experiment: Experiment) -> int | None:
    """Return the iterations of a training; None where the config counts epochs."""
    cfg = experiment.cfg
    if experiment.framework == "detectron2":
        return int(cfg.SOLVER.MAX_ITER)
    return cfg.train_cfg.get("max_iters")


def scaled(experiment: Experiment, ratio: float) -> list[str]:
    """Stretch the schedule of a config to another number of iterations or epochs.

    Args:
        experiment: The config.
        ratio: New length of the training over the old one.

    Returns:
        ``KEY=VALUE`` of what changes: the length, and milestones, warm-up and validations with it.
    """
    cfg = experiment.cfg

    def stretch(value: int) -> int:
        return max(1, round(value * ratio))

    if experiment.framework == "detectron2":
        solver = cfg.SOLVER
        last = stretch(solver.MAX_ITER)
        steps = [s for s in map(stretch, solver.STEPS) if s < last]
        return [
            f"SOLVER.MAX_ITER={last}",
            f"SOLVER.STEPS=({''.join(f'{s},' for s in steps)})",
            f"SOLVER.WARMUP_ITERS={stretch(solver.WARMUP_ITERS) if solver.WARMUP_ITERS else 0}",
        ]
    key = "max_iters" if "max_iters" in cfg.train_cfg else "max_epochs"
    changes: dict[str, Any] = {f"train_cfg.{key}": stretch(cfg.train_cfg[key])}
    if "val_interval" in cfg.train_cfg:
        changes["train_cfg.val_interval"] = stretch(cfg.train_cfg.val_interval)
    schedulers = cfg.get("param_scheduler") or []
    for number, scheduler in enumerate(schedulers if isinstance(schedulers, list) else []):
        for name in ("begin", "end", "T_max", "total_iters", "step_size"):
            if scheduler.get(name):
                changes[f"param_scheduler.{number}.{name}"] = stretch(scheduler[name])
        if scheduler.get("milestones"):
            stretched: Sequence[int] = [stretch(m) for m in scheduler.milestones]
            changes[f"param_scheduler.{number}.milestones"] = f"[{','.join(map(str, stretched))}]"
    return [f"{name}={value}" for name, value in changes.items()]
