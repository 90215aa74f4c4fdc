"""What the table of running runs says."""

from __future__ import annotations

import json

from toy_runs import toy_run, write_log

from mtl_plugins.compare.progress import Progress, row
from mtl_plugins.compare.runs import Status


def test_row_of_a_training(tmp_path):
    run = toy_run(tmp_path, "pcgrad", 2)
    assert row(run) == ("pcgrad", "2", "new", "", "", "")
    records = [{"lr": 0.1, "loss": 2.0, "step": 10}, {"coco/bbox_mAP": 0.25, "step": 10}]
    path = write_log(run.path, records)
    (run.path / "train.log").write_text(
        "Iter(train) [10/60]  lr: 1  eta: 1 day, 0:01:40  time: 2\n"
    )
    Status("training").write(run.path)
    with path.open("a") as file:
        file.write('{"lr": 0.1, "los')  # being written
    expected = ("pcgrad", "2", "training", "10", "1 day, 0:01:40", "coco/bbox_mAP 0.25")
    assert row(run) == expected


def test_row_of_detectron2(tmp_path):
    run = toy_run(tmp_path)
    run.path.mkdir(parents=True)
    record = {"iteration": 39, "lr": 0.1, "total_loss": 1.5, "rpn/num_pos_anchors": 3.0}
    (run.path / "metrics.json").write_text(json.dumps(record) + "\n")
    assert row(run)[3:] == ("40", "", "total_loss 1.5")


def test_lines_where_there_is_no_terminal(tmp_path, capsys):
    run = toy_run(tmp_path)
    with Progress([run], live=False) as progress:
        progress.update()
        Status("training").write(run.path)
        progress.update()
        progress.update()
        Status("done").write(run.path)
    assert capsys.readouterr().out == "sum/0: training\nsum/0: done\n"


def test_live_table(tmp_path):
    from rich.console import Console

    run = toy_run(tmp_path)
    Status("failed").write(run.path)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(Progress([run], live=True)._table())
    assert "failed" in console.export_text()
