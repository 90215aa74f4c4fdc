"""Slurm's commands are stand-ins, submitit is real."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
from commands import ROOT
from toy_runs import ToyAgain, toy_run

from mtl_plugins.compare.command import run_all
from mtl_plugins.compare.engines import slurm
from mtl_plugins.compare.runs import Status

SBATCH = """#!/bin/bash
# Start the batch file in the background, as a node would a moment later.
id=$(($(cat {state}/last 2>/dev/null || echo 100) + 1)); echo $id > {state}/last
cp "${{@: -1}}" {state}/$id.sh
(sleep 0.3; SLURM_JOB_ID=$id SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 \
 SLURM_NODEID=0 SLURM_JOB_NODELIST=here SLURM_NODELIST=here bash {state}/$id.sh; \
 echo $? > {state}/$id.done) > {state}/$id.out 2>&1 &
echo "Submitted batch job $id"
"""
SRUN = """#!/bin/bash
while [[ "$1" == --* || "$1" == -* ]]; do
  case "$1" in --output|--error) shift 2;; *) shift;; esac
done
exec "$@"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
for file in {state}/*.sh; do
  id=$(basename $file .sh)
  echo "$id|$([ -f {state}/$id.done ] && echo COMPLETED || echo RUNNING)|here"
done
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    state = tmp_path / "slurm"
    state.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        path = state / name
        path.write_text(text.format(state=state) if name != "srun" else text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{state}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests' / 'compare'}")
    return state


def test_a_job_each_run(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "Again", ToyAgain)
    runs = [toy_run(tmp_path, "sum"), toy_run(tmp_path, "pcgrad", 0, "fail=1")]
    engine = slurm.Slurm(tmp_path / "jobs", 2, {"slurm_partition": "gpu", "timeout_min": 5})
    run_all(runs, engine)
    assert [Status.read(r.path).state for r in runs] == ["done", "failed"]
    batch = (stand_in / "101.sh").read_text()
    assert "#SBATCH --partition=gpu" in batch and "--gpus-per-node=2" in batch


def test_a_parameter_that_submitit_does_not_know(stand_in, tmp_path):
    with pytest.raises(SystemExit, match="--slurm: .*partitoin"):
        slurm.Slurm(tmp_path / "jobs", 0, {"slurm_partitoin": "gpu"})
