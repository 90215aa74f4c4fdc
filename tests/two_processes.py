"""Starts a test file in two processes over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import ROOT
from torch import distributed

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def results_of_two(file: str, out: Path) -> list[Any]:
    """Runs ``file`` by torchrun and returns what its :func:`work` found on each rank."""
    done = subprocess.run(
        [*TORCHRUN, file, str(out)],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                str(ROOT / folder) for folder in (".", "tools", "tests", "tests/mm")
            ),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(2)]


def work(find: Callable[[int], Any]) -> None:
    """The other side: saves what ``find`` returns on this rank."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.save(find(rank), f"{sys.argv[1]}.{rank}")
    distributed.destroy_process_group()
