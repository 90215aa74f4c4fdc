"""Training in two processes, as the two shell scripts start them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import ROOT, SMALL, TWO_STEPS, run

RECORD = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$SRUN_LOG"
"""
# Like the real one, srun sets a task's variables, and ends all of them when one fails.
SRUN = f"""{RECORD}
while [[ $1 == -* ]]; do
    case $1 in
        -p) shift ;;
        --ntasks=*) export SLURM_NTASKS=${{1#*=}} ;;
    esac
    shift
done
export SLURM_NODELIST='node[1-2]'
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    wait -n || {{ kill $(jobs -p); exit 1; }}
done
"""
SCONTROL = """#!/usr/bin/env bash
[ "$*" = 'show hostname node[1-2]' ] && printf '%s\\n' 127.0.0.1 not-the-first.invalid
"""


@pytest.fixture
def launch(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a shell script without CUDA, in a directory other than the repository's.

    The commands of slurm that a test writes into ``bin`` come first on ``PATH``, then this Python.
    """
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)  # the launcher has to set them
    for name in ("GPUS", "GPUS_PER_NODE", "CPUS_PER_TASK", "SRUN_ARGS"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {
        "PATH": os.pathsep.join(
            [str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        ),
        "CUDA_VISIBLE_DEVICES": "",
        "MASTER_PORT": port,  # as slurm's users set it
        "PORT": port,  # as dist_train.sh calls it
        "SRUN_LOG": str(tmp_path / "srun.log"),
    }

    def launch(script: str, *arguments: str, **more: str) -> str:
        return run(str(ROOT / script), *arguments, coco=coco, cwd=tmp_path, **env, **more)

    return launch


def write_commands(directory: Path, **scripts: str) -> None:
    directory.mkdir()
    for name, script in scripts.items():
        (directory / name).write_text(script)
        (directory / name).chmod(0o755)


def assert_two_ranks_trained(log: str, work_dir: Path) -> None:
    """MMEngine's report of the environment has the size of the process group.

    It comes once: only the first rank logs, so two processes that each train alone would be seen.
    """
    assert log.count("Distributed training: True") == 1
    assert log.count("GPU number: 2") == 1
    assert log.count("Iter(train) [2/2]") == 1
    optimizer = torch.load(work_dir / "iter_2.pth", weights_only=False)["optimizer"]
    assert optimizer["mtl"]["aggregator"]["type"] == "PCGrad"


def test_dist_train(launch: Callable[..., str], tmp_path: Path) -> None:
    work_dir = tmp_path / "a run"
    arguments = ["--mtl", "pcgrad", "--work-dir", str(work_dir), *TWO_STEPS]
    log = launch("tools/dist_train.sh", str(ROOT / SMALL), "2", *arguments)
    assert_two_ranks_trained(log, work_dir)


def test_slurm_train(launch: Callable[..., str], tmp_path: Path) -> None:
    write_commands(tmp_path / "bin", srun=SRUN, scontrol=SCONTROL)
    work_dir = tmp_path / "a run"
    log = launch(
        *("tools/slurm_train.sh", "cpus", "a job", str(ROOT / SMALL), str(work_dir)),
        *("--mtl", "pcgrad", *TWO_STEPS),
        GPUS="2",
        GPUS_PER_NODE="0",
    )
    assert_two_ranks_trained(log, work_dir)
    assert (tmp_path / "srun.log").read_text().splitlines() == [
        *("-p", "cpus", "--job-name=a job"),
        *("--ntasks=2", "--cpus-per-task=5", "--kill-on-bad-exit=1"),
        *("python", "-u", str(ROOT / "tools/train.py"), str(ROOT / SMALL)),
        *(f"--work-dir={work_dir}", "--launcher=slurm", "--mtl", "pcgrad", *TWO_STEPS),
    ]


@pytest.mark.parametrize(
    ("env", "options"),
    [
        (
            {},
            ["--gres=gpu:8", "--ntasks-per-node=8", "--ntasks=8", "--cpus-per-task=5"],
        ),
        (
            {"GPUS": "16", "GPUS_PER_NODE": "4", "CPUS_PER_TASK": "2"},
            ["--gres=gpu:4", "--ntasks-per-node=4", "--ntasks=16", "--cpus-per-task=2"],
        ),
    ],
)
def test_slurm_train_asks_for_gpus(
    env: dict[str, str], options: list[str], launch: Callable[..., str], tmp_path: Path
) -> None:
    """MMDetection's variables and their defaults; SRUN_ARGS are several words, and come last."""
    write_commands(tmp_path / "bin", srun=RECORD)
    launch(
        *("tools/slurm_train.sh", "gpus", "job", "config.py", "run"),
        SRUN_ARGS="--exclusive --time=1:00",
        **env,
    )
    assert (tmp_path / "srun.log").read_text().splitlines() == [
        *("-p", "gpus", "--job-name=job", *options, "--kill-on-bad-exit=1"),
        *("--exclusive", "--time=1:00"),
        *("python", "-u", str(ROOT / "tools/train.py"), "config.py"),
        *("--work-dir=run", "--launcher=slurm"),
    ]
