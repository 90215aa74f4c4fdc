"""Runs on this machine, one for each GPU, or some at a time on its CPUs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import torch

from mtl_plugins.compare.execute import execute, stop_all
from mtl_plugins.compare.runs import Run


def visible_gpus() -> list[str]:
    """List the GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = [n.strip() for n in chosen.split(",")] if chosen else [str(i) for i in range(count)]
    return names[:count]


class Local:
    """Engine that starts processes on this machine.

    Args:
        jobs: Runs at a time; None for one each GPU, or one on a machine without.
        gpus: Names of the GPUs.
        gpus_per_run: GPUs that a run gets for itself.

    Raises:
        SystemExit: A run is to have more GPUs than there are.
    """

    def __init__(self, jobs: int | None, gpus: Sequence[str], gpus_per_run: int = 1) -> None:
        if gpus and gpus_per_run > len(gpus):
            raise SystemExit(f"--gpus-per-run: {gpus_per_run} are more than {len(gpus)}, all here")
        firsts = range(0, len(gpus) - gpus_per_run + 1, gpus_per_run) if gpus_per_run else ()
        groups = [",".join(gpus[i : i + gpus_per_run]) for i in firsts]
        self.jobs = jobs or len(groups) or 1
        # Runs side by side share the CPUs, unless the user has said how.
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        self._threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        self._pool = ThreadPoolExecutor(self.jobs)
        self._futures: list[Future[str]] = []
        self._free: SimpleQueue[str] = SimpleQueue()
        # More jobs than GPUs share them evenly.
        for i in range(self.jobs):
            self._free.put(groups[i % len(groups)] if groups else "")

    def submit(self, run: Run) -> Future[str]:
        self._futures.append(self._pool.submit(self._run, run))
        return self._futures[-1]

    def _run(self, run: Run) -> str:
        gpus = self._free.get()
        try:
            return execute(run, {"CUDA_VISIBLE_DEVICES": gpus} if gpus else self._threads)
        finally:
            self._free.put(gpus)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in self._futures):
            stop_all()  # again, for a run that was between two commands
            time.sleep(0.05)
