"""Logs through kills and resumes, and as older versions of the frameworks wrote them."""

from __future__ import annotations

import json

import pytest
from toy_runs import write_log

from mtl_plugins.compare.logs import Log, LogError


def train(step: int, loss: float = 1.0, **more: float) -> dict[str, float]:
    return {"lr": 0.1, "loss": loss, "time": 0.5, "step": step, **more}


def test_iterations_after_the_last_checkpoint_count_once(tmp_path):
    write_log(tmp_path, [train(10), train(20, 9.0), train(30, 9.0)], "20260101_000000")
    write_log(tmp_path, [train(20, 2.0)], "20260101_000100")
    log = Log(tmp_path)
    assert log.training["loss"] == {10: 1.0, 20: 2.0}
    assert log.iteration == 20


def test_scalars_of_one_iteration_on_two_lines_stay(tmp_path):
    write_log(tmp_path, [{"mtl/gds": 0.5, "step": 10}, train(10), {"mtl/gds": 0.4, "step": 20}])
    log = Log(tmp_path)
    assert log.training["mtl/gds"] == {10: 0.5, 20: 0.4} and log.training["loss"] == {10: 1.0}


def test_validation_by_epoch_does_not_take_iterations_away(tmp_path):
    """MMEngine logs an epoch as the step of a validation, beside iterations of the training."""
    val = {"coco/bbox_mAP": 0.3, "data_time": 0.1, "time": 0.2}
    write_log(tmp_path, [train(10), train(20), {**val, "step": 1}, train(30)])
    log = Log(tmp_path)
    assert sorted(log.training["loss"]) == [10, 20, 30]
    assert log.metrics["coco/bbox_mAP"] == {20: 0.3}
    assert log.training["time"] == dict.fromkeys((10, 20, 30), 0.5)


def test_validations_that_are_all_of_step_0(tmp_path):
    """open-mmlab/mmengine issue 683."""
    write_log(tmp_path, [train(10), {"mIoU": 0.1, "step": 0}, train(20), {"mIoU": 0.2, "step": 0}])
    log = Log(tmp_path)
    assert log.last("mIoU") == 0.2 and sorted(log.training["loss"]) == [10, 20]
    assert log.metrics["mIoU"] == {10: 0.1, 20: 0.2}  # two points of a curve


def test_a_resume_that_begins_with_a_validation(tmp_path):
    """open-mmlab/mmdetection issues 5860 and 6933: a log begins in the middle."""
    write_log(tmp_path, [train(10)], "20260101_000000")
    write_log(tmp_path, [{"coco/bbox_mAP": 0.3, "step": 10}, train(20)], "20260101_000100")
    assert sorted(Log(tmp_path).training["loss"]) == [10, 20]


def test_validations_of_iterations_that_are_trained_again_count_once(tmp_path):
    """Killed at 35 with a checkpoint of 20: the resumed run begins with that validation."""
    first, second = ({"mIoU": value, "step": 0} for value in (0.1, 0.2))
    killed = [train(10), first, train(20), second, train(30), {"mIoU": 9.0, "step": 0}]
    write_log(tmp_path, killed, "20260101_000000")
    again = [{"mIoU": 0.21, "step": 0}, train(30), {"mIoU": 0.3, "step": 0}]
    write_log(tmp_path, again, "20260101_000100")
    assert Log(tmp_path).metrics["mIoU"] == {10: 0.1, 20: 0.21, 30: 0.3}


def test_detectron2_goes_on_in_one_file_and_counts_from_0(tmp_path):
    lines = [
        {"iteration": 19, "total_loss": 1.0, "time": 0.2, "lr": 0.1},
        {"iteration": 39, "total_loss": 9.0, "time": 0.2, "lr": 0.1},
        {"iteration": 39, "total_loss": 2.0, "time": 0.2, "lr": 0.1, "mtl/gds": 0.1},
        {"iteration": 40, "bbox/AP": 31.0, "segm/AP": 20.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.json").write_text(text + '{"iteration": 59, "tot')
    log = Log(tmp_path)
    assert log.training["total_loss"] == {20: 1.0, 40: 2.0}
    assert log.last("bbox/AP") == 31.0


def test_no_log_and_a_broken_one(tmp_path):
    with pytest.raises(LogError, match="no .*scalars.json in it"):
        Log(tmp_path)
    path = write_log(tmp_path, [train(10)])
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(LogError, match="line 1: expected JSON"):
        Log(tmp_path)
