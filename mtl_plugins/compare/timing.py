"""A few iterations of a method: what an iteration takes, and what a checkpoint weighs."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

from mtl_plugins.compare.execute import SUPERVISOR, last_lines
from mtl_plugins.compare.frameworks import FRAMEWORKS
from mtl_plugins.compare.logs import Log, LogError
from mtl_plugins.compare.runs import Run, write_text

ITERATIONS = 6
EPOCH_LENGTH = "epoch_length.txt"
"""File in the work directory to which ``EpochLengthHook`` writes the iterations of an epoch."""
OPTIONS = {
    "openmmlab": (
        "default_hooks.logger.type=LoggerHook",
        "default_hooks.logger.interval=1",
        "log_processor.window_size=1",
        "default_hooks.checkpoint.by_epoch=False",
        f"default_hooks.checkpoint.interval={ITERATIONS}",
        "default_hooks.checkpoint.max_keep_ckpts=1",
        "default_hooks.epoch_length.type=EpochLengthHook",
    ),
    "detectron2": ("SOLVER.CHECKPOINT_PERIOD=20",),  # logs a median every 20 iterations
}


@dataclass
class Timing:
    """Measurements of a few iterations.

    Attributes:
        seconds: Median seconds of an iteration; 0 if it failed.
        checkpoint: Bytes of a checkpoint; 0 if none was written in time.
        per_epoch: Iterations of an epoch; 0 in a run that counts iterations.
        error: End of the log, if it failed.
    """

    seconds: float = 0.0
    checkpoint: int = 0
    per_epoch: int = 0
    error: str = ""


def measure(run: Run, settings: Mapping[str, str], folder: Path, timeout: float = 600.0) -> Timing:
    """Train a few iterations of a run elsewhere and stop; the result is kept for later calls.

    Args:
        run: The run.
        settings: Every setting of the config by its key; with others, the kept result is of no use.
        folder: Folder of all measurements.
        timeout: Seconds after which it counts as failed.
    """
    key = crc32(repr((run.options, sorted(settings.items()))).encode())
    kept = folder / f"{run.name}-{key:08x}.json"
    if kept.is_file():
        return Timing(**json.loads(kept.read_text()))
    print(f"timing a few iterations of {run.name}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{run.name}-", dir=folder) as name:
        found = _measure(replace(run, folder=name), timeout)
    if not found.error:
        write_text(kept, json.dumps(asdict(found)))
    return found


def _measure(run: Run, timeout: float) -> Timing:
    short = replace(run, options=(*run.options, *OPTIONS[run.framework]))
    framework = FRAMEWORKS[run.framework]
    path = run.path / "train.log"
    with path.open("w") as log:
        supervisor = subprocess.Popen(
            [sys.executable, str(SUPERVISOR), str(log.fileno()), *framework.train(short)],
            cwd=run.where,
            env=os.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(log.fileno(),),
            start_new_session=True,
        )
        assert supervisor.stdin is not None
        end = time.monotonic() + timeout
        try:
            while supervisor.poll() is None and time.monotonic() < end:
                if framework.checkpoint(run.path) and _times(run.path):
                    break
                time.sleep(0.2)
        finally:
            supervisor.stdin.close()
            supervisor.wait()
    times = _times(run.path)
    if not times:
        return Timing(error=last_lines(path) or f"no iteration in {timeout:g} s")
    checkpoint = framework.checkpoint(run.path)
    size = checkpoint.stat().st_size if checkpoint else 0
    epoch = run.path / EPOCH_LENGTH
    per_epoch = int(epoch.read_text()) if epoch.is_file() else 0
    return Timing(statistics.median(times[1:] or times), size, per_epoch)


def _times(work: Path) -> list[float]:
    try:
        return list(Log(work).training.get("time", {}).values())
    except LogError:
        return []
