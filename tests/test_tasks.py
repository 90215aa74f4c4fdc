import pytest
import torch

from mtl_plugins.tasks import TaskGroups

MASK_RCNN = ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"]
TASKS = {"detection": ["loss_rpn_*", "loss_cls", "loss_bbox"], "mask": "loss_mask"}


def losses(names=MASK_RCNN):
    return {name: torch.tensor(float(2**i)) for i, name in enumerate(names)}


def test_sums_the_terms_of_each_task():
    grouped = TaskGroups(TASKS)(losses())
    assert {task: loss.item() for task, loss in grouped.items()} == {"detection": 15, "mask": 16}


def test_without_tasks_every_term_is_one():
    terms = losses()
    assert TaskGroups(None)(terms) == terms


def test_order_is_that_of_the_config():
    assert list(TaskGroups({"mask": "loss_mask", "rest": "loss_[!m]*"})(losses())) == [
        "mask",
        "rest",
    ]


def test_a_later_batch_may_lack_a_task():
    groups = TaskGroups(TASKS)
    groups(losses())
    assert list(groups(losses(MASK_RCNN[:4]))) == ["detection"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"detection": "loss_rpn_*", "mask": "loss_mask"}, "no task claims the loss 'loss_cls'"),
        (TASKS | {"box": "loss_bbox"}, "'loss_bbox' is claimed by .*detection.*box"),
        (TASKS | {"seg": "loss_sem"}, "tasks.seg: 'loss_sem' matches none"),
        (TASKS | {"seg": "los_mask"}, "did you mean 'loss_mask'"),
        (TASKS | {"depth": []}, "tasks.depth: names no loss"),
    ],
)
def test_first_batch_is_checked(tasks, message):
    with pytest.raises(KeyError, match=message):
        TaskGroups(tasks)(losses())


def test_new_loss_in_a_later_batch_is_an_error():
    groups = TaskGroups(TASKS)
    groups(losses())
    with pytest.raises(KeyError, match="no task claims the loss 'loss_iou'"):
        groups(losses([*MASK_RCNN, "loss_iou"]))


@pytest.mark.parametrize("tasks", [["loss_mask"], {}, "mask"])
def test_tasks_is_a_dict(tasks):
    with pytest.raises(TypeError, match="tasks: expected a dict"):
        TaskGroups(tasks)
