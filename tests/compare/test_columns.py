"""Which metrics become columns, of which task, and which way is better."""

from __future__ import annotations

import pytest

from mtl_plugins.compare.columns import Column, choose

BOX_MASK = {"box": ["loss_rpn_*", "loss_cls", "loss_box_reg"], "mask": "loss_mask"}


@pytest.mark.parametrize(
    ("found", "tasks", "columns"),
    [
        (["bbox/AP", "bbox/AP50", "segm/AP"], BOX_MASK, [("bbox/AP", "box"), ("segm/AP", "mask")]),
        (
            ["coco/bbox_mAP", "seg/mIoU"],
            {"det": ["loss_cls", "loss_bbox", "loss_centerness"], "seg": "loss_seg"},
            [("coco/bbox_mAP", "det"), ("seg/mIoU", "seg")],
        ),
        (
            ["seg/mIoU", "seg/aAcc", "depth/abs_err", "data_time"],
            {"depth": "depth.*", "seg": "seg.*"},
            [("depth/abs_err", "depth"), ("seg/aAcc", "seg"), ("seg/mIoU", "seg")],
        ),
    ],
)
def test_known(found, tasks, columns):
    assert [(c.name, c.task) for c in choose(found, tasks, [])] == columns


def test_errors_are_better_when_low():
    columns = choose(["depth/abs_err", "normals/within_30"], {"depth": "d.*", "normals": "n.*"}, [])
    assert [c.lower for c in columns] == [True, False]


def test_of_ones_own():
    found = ["coco/bbox_mAP", "grasp/error"]
    columns = choose(found, BOX_MASK, ["grasp/error=grasp:low", "coco/bbox_mAP"])
    assert columns[0] == Column("grasp/error", "grasp", True)
    assert columns[1].name == "coco/bbox_mAP"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["coco/box_mAP"], "no run has 'coco/box_mAP'; did you mean 'coco/bbox_mAP'"),
        (["grasp/error"], "which way is better: grasp/error=TASK:high"),
        (["grasp/error=low"], "neither NAME nor NAME=TASK:high"),
    ],
)
def test_errors(wanted, message):
    with pytest.raises(SystemExit, match=message):
        choose(["coco/bbox_mAP", "grasp/error"], BOX_MASK, wanted)


def test_nothing_known():
    with pytest.raises(SystemExit, match="none of the metrics is known: grasp/error"):
        choose(["grasp/error"], BOX_MASK, [])
