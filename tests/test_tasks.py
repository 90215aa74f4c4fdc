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


def test_both_patterns_of_a_loss_that_is_claimed_twice_are_named():
    with pytest.raises(KeyError, match=r"tasks.a \('loss_rpn_\*', '\*_cls'\) and tasks.b \('loss"):
        TaskGroups({"a": ["loss_rpn_*", "*_cls"], "b": "loss_*"})(losses())


def test_a_typo_is_told_rather_than_the_loss_that_it_leaves_over():
    tasks = {"detection": ["loss_rpn_*", "loss_cls", "loss_bbx"], "mask": "loss_mask"}
    with pytest.raises(KeyError, match=r"tasks.detection: 'loss_bbx' .*did you mean 'loss_bbox'"):
        TaskGroups(tasks)(losses())


def test_what_the_framework_does_not_train_is_said_so():
    with pytest.raises(KeyError, match="tasks.x: 'acc' matches 'acc', which .* does not train"):
        TaskGroups(TASKS | {"x": "acc"})(losses(), untrained=["acc"])


@pytest.mark.parametrize("optional", ["loss_late", ["loss_l*"]])
def test_an_optional_loss_may_come_later(optional):
    groups = TaskGroups(TASKS | {"late": "loss_late"}, optional)
    assert list(groups(losses())) == ["detection", "mask"]
    assert list(groups(losses([*MASK_RCNN, "loss_late"]))) == ["detection", "mask", "late"]


def test_a_number_is_a_constant():
    terms = losses() | {"loss_cls": 0, "loss_mask": 0.0}
    grouped = TaskGroups(TASKS)(terms)
    assert {task: loss.item() for task, loss in grouped.items()} == {"detection": 1 + 2 + 8}


class TestHalfAHead:
    """One of two losses of a task is absent while the other one is 0: nobody has examples."""

    TASKS = TASKS | {"mask": ["loss_mask", "loss_mask_iou"]}

    def test_waits_for_the_first_example(self):
        groups = TaskGroups(self.TASKS)
        groups(losses() | {"loss_mask": torch.zeros(())})
        groups(losses([*MASK_RCNN[:4]]))
        with pytest.raises(KeyError, match="tasks.mask: 'loss_mask_iou' matches none"):
            groups(losses())

    def test_what_has_matched_travels_in_the_state(self):
        groups, resumed = TaskGroups(self.TASKS), TaskGroups(self.TASKS)
        groups(losses([*MASK_RCNN, "loss_mask_iou"]))
        resumed.load_state_dict(groups.state_dict())
        assert list(resumed(losses())) == ["detection", "mask"]

    def test_what_has_not_matched_as_well(self):
        groups, resumed = TaskGroups(self.TASKS), TaskGroups(self.TASKS)
        groups(losses() | {"loss_mask": torch.zeros(())})
        resumed.load_state_dict(groups.state_dict())
        with pytest.raises(KeyError, match="tasks.mask: 'loss_mask_iou' matches none"):
            resumed(losses())


@pytest.mark.parametrize("names", [["loss_l1"], ["loss_mask", "loss_l1"]])
def test_a_loss_that_will_come_needs_a_task(names):
    TaskGroups(None).expect(names)
    TaskGroups(TASKS | {"l1": "loss_l1"}).expect(names)
    with pytest.raises(
        KeyError, match="tasks: no task claims the loss 'loss_l1'. The model has it"
    ):
        TaskGroups(TASKS).expect(names)


@pytest.mark.parametrize(
    ("tasks", "optional", "key"),
    [
        ({"a": 3}, (), "tasks.a"),
        ({"a": ["loss", None]}, (), "tasks.a"),
        (None, 3, "optional_losses"),
    ],
)
def test_names_of_losses_are_text(tasks, optional, key):
    with pytest.raises(TypeError, match=f"{key}: expected names of losses"):
        TaskGroups(tasks, optional)


@pytest.mark.parametrize("tasks", [["loss_mask"], {}, "mask"])
def test_tasks_is_a_dict(tasks):
    with pytest.raises(TypeError, match="tasks: expected a dict"):
        TaskGroups(tasks)
