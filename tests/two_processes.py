"""Starts a test file in processes whose imports are done already: one, or two over gloo."""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from models import ROOT
from torch import distributed

PATHS = [str(ROOT / folder) for folder in (".", "tools", "tests", "tests/mm", "tests/d2")]
TIMEOUT = 900.0  # seconds, for a machine where much else runs


@cache
def context() -> ForkServerContext:
    """Starts the server that forks all processes: the frameworks are imported once for all."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(
        ["models", "mmdet.models", "mmdet.datasets", "mmdet.testing", "mtl_plugins.d2.train_net"]
    )
    env = {"PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1"}
    env["DETECTRON2_DATASETS"] = "datasets"  # read once, at the import: of the working directory
    with mock.patch.dict(os.environ, env):
        forkserver.ensure_running()
    return server


def start(
    file: str, *arguments: str, log: Path, cwd: Path = ROOT, env: Mapping[str, str] = {}
) -> BaseProcess:
    """Starts ``file`` as a script of its own; what it prints goes to ``log``."""
    process = context().Process(target=_run, args=(file, arguments, log, cwd, env))
    process.start()
    return process


def output_of(script: str, *arguments: object, log: Path, cwd: Path = ROOT, **env: str) -> str:
    """Runs a script of the repository, with its imports done already, and returns all it prints.

    Each script has a test besides that starts it as a user does, see :func:`commands.run`.
    """
    process = start(str(ROOT / script), *map(str, arguments), log=log, cwd=cwd, env=env)
    try:
        process.join(TIMEOUT)
    finally:
        process.kill()
        process.join()
    said = log.read_text()
    assert process.exitcode == 0, said[-3000:]
    return said


def _run(
    file: str, arguments: tuple[str, ...], log: Path, cwd: Path, env: Mapping[str, str]
) -> None:
    gc.freeze()  # as in conftest.py
    os.environ.update(env)
    os.chdir(cwd)
    with log.open("w") as opened:
        os.dup2(opened.fileno(), 1)
        os.dup2(opened.fileno(), 2)
    sys.argv = [file, *arguments]
    runpy.run_path(file, run_name="__main__")


def results_of_two(file: str, out: Path) -> list[Any]:
    """Runs ``file`` on two ranks and returns what its :func:`work` found on each."""
    logs = [Path(f"{out}.{rank}.log") for rank in range(2)]
    ranks = [start(file, str(out), str(rank), log=log) for rank, log in enumerate(logs)]
    running = ranks
    try:
        while running and not any(p.exitcode for p in ranks):
            ended = connection.wait([p.sentinel for p in running], TIMEOUT)
            running = [p for p in running if p.exitcode is None] if ended else []
    finally:
        for process in ranks:
            process.kill()  # where the other one failed, or nothing happens
            process.join()
    said = "\n".join(log.read_text()[-5000:] for log in logs if log.exists())
    assert [p.exitcode for p in ranks] == [0, 0], said
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(2)]


def work(find: Callable[[int], Any]) -> None:
    """The other side: saves what ``find`` returns on this rank."""
    out, rank = sys.argv[1], int(sys.argv[2])
    store = f"file://{out}.store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save(find(rank), f"{out}.{rank}")
    distributed.destroy_process_group()
