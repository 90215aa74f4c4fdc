"""Runs in real processes: failures, kills, resumes, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ROOT
from toy_runs import toy_run

from mtl_plugins.compare.command import run_all
from mtl_plugins.compare.engines.local import Local
from mtl_plugins.compare.execute import execute
from mtl_plugins.compare.logs import Log
from mtl_plugins.compare.results import read
from mtl_plugins.compare.runs import Status

CALL = """
import sys
sys.path[:0] = {paths!r}
from toy_runs import Toy, toy_run
from mtl_plugins.compare import frameworks
from mtl_plugins.compare.execute import execute
from pathlib import Path
frameworks.FRAMEWORKS["toy"] = Toy()
print("begun", flush=True)
print(execute(toy_run(Path({folder!r}), "sum", 0, "sleep=0.05", "iterations=40")))
"""


def call(folder: Path) -> subprocess.Popen[str]:
    """Start another process that runs the toy, as ``mtl-compare`` would."""
    code = CALL.format(paths=[str(ROOT), str(Path(__file__).parent)], folder=str(folder))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def until(condition) -> None:
    end = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_done_once(tmp_path):
    run = toy_run(tmp_path)
    assert execute(run) == ""
    status = Status.read(run.path)
    assert status.state == "done" and status.attempts == 1 and status.seconds > 0.0
    assert status.peak_bytes > 2**20 and len(status.commands) == 2
    assert execute(run) == ""
    assert Status.read(run.path).attempts == 1


def test_a_failure_is_told_by_its_last_lines_and_tried_again(tmp_path):
    error = execute(toy_run(tmp_path, "sum", 0, "fail=1"))
    assert error.startswith("train: exit code 1; the end of ")
    assert error.endswith("optim_wrapper: there is no option 'agregator'")
    assert len(error.splitlines()) < 20
    assert Status.read(tmp_path / "sum" / "0").state == "failed"
    assert execute(toy_run(tmp_path)) == ""
    assert Status.read(tmp_path / "sum" / "0").state == "done"


def test_one_failing_run_leaves_the_others(tmp_path, capsys):
    runs = [
        toy_run(tmp_path, "sum"),
        toy_run(tmp_path, "bad", 0, "fail=1"),
        toy_run(tmp_path, "pcgrad"),
    ]
    run_all(runs, Local(2, []))
    assert [Status.read(r.path).state for r in runs] == ["done", "failed", "done"]
    printed = capsys.readouterr().out
    assert "3 runs: 0 done, 3 to do" in printed and "no option 'agregator'" in printed
    run_all(runs, Local(1, []))
    assert "3 runs: 2 done, 1 to do" in capsys.readouterr().out
    assert [Status.read(r.path).attempts for r in runs] == [1, 2, 1]


@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_a_killed_call_stops_its_training_and_the_next_goes_on_from_the_checkpoint(tmp_path, kill):
    """A batch system kills the whole group (the report on ``kill -9``: blueapi issue 561)."""
    run = toy_run(tmp_path, "sum", 0, "iterations=40")
    checkpoint = run.path / "checkpoint"
    process = call(tmp_path)
    until(checkpoint.is_file)
    kill(process.pid, signal.SIGKILL)
    process.wait()
    assert execute(run) == ""  # waits for the lock, and so for the end of what was left
    assert Status.read(run.path).attempts == 2
    firsts = sorted(p.read_text() for p in run.path.glob("*/vis_data/scalars.json"))
    assert len(firsts) == 2 and not any('"step": 40' in text for text in firsts[1:2])
    steps = Log(run.path).training["loss"]
    assert sorted(steps) == list(range(1, 41))
    assert read(run).metrics == {"coco/bbox_mAP": 0.3, "coco/segm_mAP": 0.2}


def test_closing_the_engine_stops_all_runs(tmp_path):
    """As after Ctrl-C; a run that stops is no failure of the method."""
    runs = [toy_run(tmp_path, "sum", seed, "sleep=0.05", "iterations=200") for seed in range(2)]
    engine = Local(1, [])
    pending = [engine.submit(run) for run in runs]
    until((runs[0].path / "checkpoint").is_file)
    engine.close()
    assert all(future.done() for future in pending)
    status = Status.read(runs[0].path)
    assert status.error == "train: stopped, the next call goes on from the last checkpoint"
    assert Status.read(runs[1].path).state == "new"
    assert Log(runs[0].path).iteration < 200


def test_a_killed_training_is_a_failure(tmp_path):
    process = call(tmp_path)
    folder = tmp_path / "sum" / "0"
    until((folder / "checkpoint").is_file)
    log = next(folder.glob("*/vis_data/scalars.json"))
    os.kill(int(log.parent.parent.name.split("_")[1]), signal.SIGKILL)
    assert process.stdout is not None
    assert "train: killed by SIGKILL (out of memory?)" in process.stdout.read()
    process.wait()
    assert Status.read(folder).state == "failed"


def test_a_full_disk_is_one_error(tmp_path):
    run = toy_run(tmp_path)
    run.path.mkdir(parents=True)
    (run.path / "run.json.unfinished").symlink_to("/dev/full")
    assert execute(run) == f"{run.folder}: No space left on device"


def test_gpus_are_shared_out(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "mtl_plugins.compare.engines.local.execute",
        lambda run, env: seen.append(env["CUDA_VISIBLE_DEVICES"]) or time.sleep(0.05) or "",
    )
    engine = Local(None, ["0", "1", "2", "3", "4"], gpus_per_run=2)
    assert engine.jobs == 2
    pending = [engine.submit(toy_run(tmp_path, "sum", seed)) for seed in range(2)]
    assert [p.result() for p in pending] == ["", ""]
    assert sorted(seen) == ["0,1", "2,3"]
    with pytest.raises(SystemExit, match="--gpus-per-run: 3 are more than 2"):
        Local(None, ["0", "1"], gpus_per_run=3)
