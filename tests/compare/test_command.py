"""``mtl-compare`` from the command line to the report, on a toy and on Mask R-CNN."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from commands import ROOT, SMALL
from toy_runs import toy_run

from mtl_plugins.compare import command, timing
from mtl_plugins.compare.engines.local import Local
from mtl_plugins.compare.experiments import Experiment
from mtl_plugins.compare.runs import Status
from mtl_plugins.compare.timing import Timing, measure

TASKS = {"detection": ["loss_cls", "loss_bbox"], "mask": "loss_mask"}


@pytest.fixture
def toy(monkeypatch):
    """The command with the toy in place of a framework."""
    options: dict[str, tuple[str, ...]] = {}

    def planned(*args, **kwargs):
        return [
            replace(run, framework="toy", options=options.get(run.name, ()))
            for run in real(*args, **kwargs)
        ]

    real = command.plan
    experiment = Experiment("openmmlab", "toy.py", TASKS, {"lr": "0.1"})
    monkeypatch.setattr(command, "load", lambda *args: experiment)
    monkeypatch.setattr(command, "plan", planned)
    monkeypatch.setattr(command, "_engine", lambda args: Local(2, []))
    monkeypatch.setattr(command, "length", lambda experiment: (20, "iterations"))
    return options


def test_a_second_call_runs_what_is_new(toy, tmp_path, capsys):
    command.main(["toy.py", "--mtl", "pcgrad", "--seeds", "1", "--work-dir", str(tmp_path)])
    assert "2 runs: 0 done, 2 to do" in capsys.readouterr().out
    arguments = ["toy.py", "--mtl", "pcgrad", "ista", "--seeds", "2", "--work-dir", str(tmp_path)]
    command.main(arguments)
    printed = capsys.readouterr().out
    assert "6 runs: 2 done, 4 to do" in printed and "no method differs" in printed
    data = json.loads((tmp_path / "results.json").read_text())
    assert len(data["runs"]) == 6 and {r["state"] for r in data["runs"]} == {"done"}
    assert data["command"] == f"mtl-compare {' '.join(arguments)}"
    assert Status.read(tmp_path / "sum" / "0").attempts == 1


def test_a_failed_run_is_in_the_report_and_in_the_exit_code(toy, tmp_path, capsys):
    toy["pcgrad"] = ("fail=1",)
    toy["ista"] = ("missing=1",)
    arguments = ["toy.py", "--mtl", "pcgrad", "ista", "--seeds", "2", "--work-dir", str(tmp_path)]
    with pytest.raises(SystemExit) as raised:
        command.main(arguments)
    assert raised.value.code == 1
    page = (tmp_path / "report.html").read_text()
    assert "optim_wrapper: there is no option &#x27;agregator&#x27;" in page
    assert "ista, seed 1: has no finite coco/segm_mAP" in page
    printed = capsys.readouterr().out
    assert "ista    0.3 ± 0 –" in printed


def test_nothing_trains(toy, tmp_path):
    toy["sum"] = ("fail=1",)
    with pytest.raises(SystemExit, match="(?s)no option 'agregator'.*there is nothing to compare"):
        command.main(["toy.py", "--seeds", "1", "--work-dir", str(tmp_path)])


def test_dry_run_estimates_and_runs_nothing(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "_timed", lambda *args: Timing(1800.0, 10**9))
    arguments = ["toy.py", "--mtl", "pcgrad", "--seeds", "3", "--work-dir", str(tmp_path)]
    command.main([*arguments, "--dry-run"])
    printed = capsys.readouterr().out
    # 6 runs of 20 iterations of half an hour; 1 GB a checkpoint
    assert "60.00 hours of training" in printed and "6.00 GB for a checkpoint" in printed
    assert not (tmp_path / "sum").exists() and not (tmp_path / "settings.json").exists()


def test_a_full_disk_at_the_report(toy, tmp_path):
    arguments = ["toy.py", "--seeds", "1", "--work-dir", str(tmp_path)]
    command.main(arguments)
    (tmp_path / "results.csv.unfinished").symlink_to("/dev/full")
    with pytest.raises(SystemExit, match="No space left on device; the results of runs that are"):
        command.main(arguments)
    assert Status.read(tmp_path / "sum" / "0").state == "done"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds: expected at least 1"),
        (["--jobs", "-1"], "--jobs: expected at least 1, got -1"),
        (["--mtl", "pcgard"], "did you mean 'pcgrad'"),
        (["--engine", "slurm", "--slurm", "partition"], "--slurm: expected KEY=VALUE"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, coco, monkeypatch):
    monkeypatch.setenv("COCO_ROOT", str(coco))
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=message):
        command.main([SMALL, "--work-dir", str(tmp_path), *arguments])


@pytest.mark.parametrize(
    ("unit", "per_epoch", "share"),
    [("iterations", {}, 0.5), ("epochs", {"sum": 30, "pcgrad": 60}, 0.25)],
)
def test_equal_time_gives_a_slow_method_less(
    toy, tmp_path, monkeypatch, capsys, unit, per_epoch, share
):
    """Twice the time of the sum for an iteration, and, as ISTA has, twice the iterations."""
    seconds = {"sum": 0.1, "pcgrad": 0.2}
    asked = {}
    monkeypatch.setattr(command, "length", lambda experiment: (20, unit))
    monkeypatch.setattr(
        command,
        "_timed",
        lambda experiment, run, folder: Timing(
            seconds[run.name], 10**9, per_epoch.get(run.name, 0)
        ),
    )
    monkeypatch.setattr(
        command, "stretched", lambda experiment, ratio: asked.setdefault("ratio", ratio) and []
    )
    arguments = ["toy.py", "--mtl", "pcgrad", "--seeds", "1", "--work-dir", str(tmp_path)]
    command.main([*arguments, "--equal-time", "--dry-run"])
    hours = 2 * 20 * 0.1 * per_epoch.get("sum", 1) / 3600.0
    printed = capsys.readouterr().out
    assert f"{hours:.2f} hours of training" in printed
    assert f"pcgrad: {round(20 * share)} {unit} of {1 / share:g} × the sum's time" in printed
    command.main([*arguments, "--equal-time"])
    assert asked == {"ratio": share}
    with pytest.raises(SystemExit, match="--equal-time was True and is False"):
        command.main(arguments)


def test_equal_time_without_the_length_of_an_epoch(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "length", lambda experiment: (20, "epochs"))
    monkeypatch.setattr(command, "_timed", lambda *args: Timing(0.1, 10**9))
    with pytest.raises(SystemExit, match="how many iterations an epoch has; its train_cfg must"):
        command.main(["toy.py", "--work-dir", str(tmp_path), "--equal-time"])


def test_timing_stops_after_a_few_iterations(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(timing.OPTIONS, "toy", ())
    run = toy_run(tmp_path, "sum", 0, "sleep=0.05", "iterations=10000", "per_epoch=117")
    found = measure(run, {"lr": "0.1"}, tmp_path / "timings")
    assert found == Timing(0.01, 1, 117)
    assert measure(run, {"lr": "0.1"}, tmp_path / "timings") == found
    assert capsys.readouterr().out.count("timing a few iterations") == 1  # it was kept
    assert measure(run, {"lr": "0.2"}, tmp_path / "timings") == found
    assert capsys.readouterr().out.count("timing a few iterations") == 1  # of another config
    failed = measure(toy_run(tmp_path, "bad", 0, "fail=1"), {}, tmp_path / "timings")
    assert failed.error.endswith("there is no option 'agregator'") and not failed.seconds
    assert all(path.suffix == ".json" for path in (tmp_path / "timings").iterdir())


def test_ctrl_c_is_one_line(toy, tmp_path, monkeypatch):
    def interrupt(runs, engine):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_all", interrupt)
    with pytest.raises(SystemExit, match="interrupted; the results of runs that are done are kept"):
        command.main(["toy.py", "--seeds", "1", "--work-dir", str(tmp_path)])
