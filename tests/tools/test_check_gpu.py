"""The check of a GPU, tried on a CPU."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from commands import ROOT
from gpu_check import detector, methods

from mtl_plugins.gradients import TaskRows

sys.path.insert(0, str(ROOT / "tools" / "analysis"))
import check_gpu  # noqa: E402

ROW = re.compile(r"^(\w+), ([\w ]+), (\w+) +(\S+) +-$", re.MULTILINE)


def test_every_section(monkeypatch, capsys):
    arguments = "--device cpu --methods Sum PCGrad MoCo --seconds 300"
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", *arguments.split()])
    assert check_gpu.main() == 0
    printed = capsys.readouterr().out
    rows = {row[:3]: float(row[3]) for row in ROW.findall(printed)}
    at_levels = {"Sum": methods.LEVELS, "PCGrad": methods.LEVELS, "MoCo": ["parameter"]}
    assert rows.keys() == {
        (name, level, precision)
        for precision in methods.DTYPES
        for name, levels in at_levels.items()
        for level in levels
    }
    for text in ("skipped for ('mask',), scale 512", "two processes", "aot_eager", "TorchJD"):
        assert text in printed
    assert re.fullmatch(r"ok \(\d+ s\)", printed.strip().splitlines()[-1])


def test_rows_that_fail_are_named(monkeypatch, capsys):
    """Were the update wrong, as by an aggregation in another precision on the device."""
    net = detector.build("cpu", "torchvision", small=True)
    right = TaskRows.combined
    wrong = lambda rows, weights: [1.1 * grad for grad in right(rows, weights)]  # noqa: E731
    monkeypatch.setattr(TaskRows, "combined", wrong)
    report = check_gpu.Report(300.0)
    check_gpu.check_methods(report, net, ["PCGrad"], "cpu")
    levels = ("parameter", "feature")
    assert report.failed == [f"PCGrad, {at}, {dtype}" for dtype in methods.DTYPES for at in levels]
    assert report.close() == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED: PCGrad, parameter, fp32;")


def test_rows_without_time_are_named(capsys):
    report = check_gpu.Report(0.0)
    report.row("speed", "a row", lambda: ("", True))
    assert report.close() == 0
    assert "no time for 1: a row\nok as far as there was time" in capsys.readouterr().out


def test_a_machine_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["check_gpu.py"])
    with pytest.raises(SystemExit):
        check_gpu.main()
    assert "PyTorch sees no CUDA device here; --device cpu" in capsys.readouterr().err
