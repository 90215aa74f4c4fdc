"""Train the runs of a comparison in forks of one process, which has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from yapf.yapflib import yapf_api

from mtl_plugins.compare.execute import last_lines
from mtl_plugins.compare.frameworks import FRAMEWORKS
from mtl_plugins.compare.runs import Run, Status
from mtl_plugins.mm.train import main as train


def train_all(runs: Sequence[Run]) -> None:
    """Train each run that is not done, one after the other; its log has the last validation.

    The folders are those of ``mtl-compare``, which reads them with ``--report-only``.
    """
    context = multiprocessing.get_context("fork")
    for number, run in enumerate(runs, 1):
        if Status.read(run.path).state == "done":
            continue
        run.path.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        process = context.Process(target=_train, args=(run,))
        process.start()
        process.join()
        status = Status(trained=True, state="done", seconds=time.monotonic() - started)
        if process.exitcode:
            status = Status(state="failed", error=last_lines(run.path / "train.log"))
        status.write(run.path)
        print(f"{number}/{len(runs)} {run}: {status.state}, {status.seconds:.0f} s", flush=True)


def _train(run: Run) -> None:
    log = (run.path / "train.log").open("w", buffering=1)
    for number in (1, 2):
        os.dup2(log.fileno(), number)
    sys.stdout = sys.stderr = log
    with suppress(FileNotFoundError):  # a run that was interrupted begins anew
        (run.path / "last_checkpoint").unlink()
    # MMEngine indents the config for its log, which takes as long as many iterations here.
    yapf_api.FormatCode = lambda code, **_: (code, True)
    train(FRAMEWORKS[run.framework].train(run)[3:])  # without "python -m module"
