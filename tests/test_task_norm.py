"""Task-specific norms: pairs found by data flow, the choice of a task, weights, folding."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_plugins.task_norm import TaskBatchNorm, convert_task_norm, fold_task_norm, task_norm

TASKS = ["seg", "depth"]
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

pytestmark = pytest.mark.usefixtures("seeded")


def network(dims: int = 2, norm: type[nn.Module] | None = None) -> nn.Sequential:
    norm = norm or NORMS[dims]
    conv = CONVS[dims]
    return nn.Sequential(conv(3, 4, 3), norm(4), nn.ReLU(), conv(4, 4, 1), norm(4))


def images(dims: int = 2) -> Tensor:
    return torch.randn(4, 3, *[5] * dims)


def run(module: nn.Module) -> None:
    module(images())


def trained() -> nn.Module:
    """Give each task's norms other weights and statistics."""
    module = network()
    convert_task_norm(module, TASKS, run)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight)
            nn.init.normal_(part.bias)
    for task in TASKS:
        with task_norm(module).of(task):
            module(images() * 3 + 1)
    return module


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_each_task_trains_as_a_plain_network_with_shared_convolutions(dims: int) -> None:
    module = network(dims)
    plain = {task: copy.deepcopy(module) for task in TASKS}
    pairs = convert_task_norm(module, TASKS, lambda net: net(images(dims)))
    assert pairs == {"0": "1", "3": "4"}
    assert sum(isinstance(part, NORMS[dims]) for part in module.modules()) == 4
    for task, scale in zip(TASKS, (1.0, 5.0), strict=True):
        batch = images(dims) * scale
        with task_norm(module).of(task):
            assert torch.equal(module(batch), plain[task](batch))
    module.eval()
    batch = images(dims)
    outputs = []
    for task in TASKS:
        with task_norm(module).of(task):
            outputs.append(module(batch))
        assert torch.equal(outputs[-1], plain[task].eval()(batch))
    assert not torch.allclose(*outputs)


def test_syncbn_keeps_its_kind_and_becomes_task_specific_before_or_after() -> None:
    before = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    convert_task_norm(before, TASKS, run)
    after = network()
    convert_task_norm(after, TASKS, run)
    after = nn.SyncBatchNorm.convert_sync_batchnorm(after)
    for module in (before, after):
        assert sum(isinstance(part, nn.SyncBatchNorm) for part in module.modules()) == 4
        with task_norm(module).of("depth"):
            assert module.eval()(images()).shape == (4, 4, 3, 3)
    assert list(before.state_dict()) == list(after.state_dict())


def test_the_dry_pass_changes_nothing() -> None:
    module = network()
    module[1].eval()
    before = copy.deepcopy(module.state_dict())
    convert_task_norm(module, TASKS, run)
    assert [module[1].training, module[4].training, module.training] == [False, True, True]
    assert [n.training for n in module[1].norms.values()] == [False, False]
    for task in TASKS:
        plain = fold_task_norm(module, task).state_dict()
        assert all(torch.equal(plain[key], before[key]) for key in before)


def test_a_failed_dry_pass_leaves_the_module_as_it_was() -> None:
    module = network()
    with pytest.raises(RuntimeError, match="channels"):
        convert_task_norm(module, TASKS, lambda net: net(torch.zeros(1, 7, 5, 5)))
    assert module.training and not any(isinstance(p, TaskBatchNorm) for p in module.modules())
    expected = copy.deepcopy(module)
    batch = images()
    assert torch.equal(module(batch), expected(batch))


class Graph(nn.Module):
    """Convolutions whose outputs go many ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.good = nn.Conv2d(3, 3, 1)
        self.behind_good = nn.BatchNorm2d(3)
        # Neither the order of definition nor the names tell the pair.
        self.other = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.behind_good(self.good(x))
        y = self.conv(x)
        if self.way == "add":
            y = self.bn(y + x)
        elif self.way == "add in place":
            y += x
            y = self.bn(y)
        elif self.way == "two norms":
            y = self.bn(y) + self.other(y)
        elif self.way == "two convolutions":
            y = self.bn(y) + self.bn(self.good(x))
        elif self.way == "activation in place":
            y = self.bn(F.relu_(y))
        elif self.way == "no convolution":
            y = self.bn(y) + self.bn(x)
        return y


@pytest.mark.parametrize(
    "way", ["add", "add in place", "two norms", "activation in place", "no convolution"]
)
def test_norms_that_no_convolution_feeds_alone_stay_shared_and_are_named(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = Graph(way)
    with caplog.at_level(logging.WARNING):
        pairs = convert_task_norm(module, TASKS, run)
    assert pairs == {"good": "behind_good"}
    assert isinstance(module.bn, nn.BatchNorm2d)
    assert "2 of 3 batch norms stay shared" in caplog.text and "other, bn" in caplog.text


def test_a_norm_behind_two_convolutions_stays_shared() -> None:
    with pytest.raises(ValueError, match="no convolution of Graph feeds"):
        convert_task_norm(Graph("two convolutions"), TASKS, run)


def test_modules_with_two_names_and_other_convolutions() -> None:
    module = network()
    module.add_module("again", module[1])
    module.again_too = nn.ModuleList([module[1]])
    transposed = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4))
    assert convert_task_norm(transposed, TASKS, run) == {"0": "1"}
    convert_task_norm(module, TASKS, lambda net: net[:5](images()))
    assert isinstance(module[1], TaskBatchNorm)
    assert module[1] is module.again is module.again_too[0]


def test_a_convolution_that_calls_its_norm_itself() -> None:
    class Conv(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            y = F.conv2d(x, self.weight, self.bias)
            return self.norm(y)

    module = nn.Sequential(Conv(3, 4, 1), nn.BatchNorm2d(4))
    module[0].norm = nn.BatchNorm2d(4)
    # The second norm gets what a norm returns.
    assert convert_task_norm(module, TASKS, run) == {"0": "0.norm"}


def test_a_pass_without_a_task_is_an_error() -> None:
    module = trained()
    for training in (True, False):
        with pytest.raises(RuntimeError, match=r"without a task.*task_norm.*seg, depth"):
            module.train(training)(images())


def test_choices_nest_and_end_with_exceptions() -> None:
    module = trained().eval()
    norm, batch = task_norm(nn.Sequential(module)), images()
    expected = {task: fold_task_norm(module, task)(batch) for task in TASKS}
    with norm.of("seg"):
        with pytest.raises(KeyError), norm.of("depth"):
            torch.testing.assert_close(module(batch), expected["depth"])
            raise KeyError
        torch.testing.assert_close(module(batch), expected["seg"])
        with (
            pytest.raises(ValueError, match=r"'edges'; the tasks are .*seg.*depth"),
            norm.of("edges"),
        ):
            pass
        torch.testing.assert_close(module(batch), expected["seg"])
    with pytest.raises(RuntimeError, match="without a task"):
        module(batch)


def test_folding_gives_the_plain_network_of_the_task() -> None:
    module, batch, plain = trained().eval(), images(), network().eval()
    for task in TASKS:
        folded = fold_task_norm(module, task)
        with task_norm(module).of(task):
            torch.testing.assert_close(folded(batch), module(batch), rtol=0, atol=1e-6)
        assert [type(part) for part in folded] == [type(part) for part in plain]
        plain.load_state_dict(folded.state_dict())
        torch.testing.assert_close(plain(batch), folded(batch), rtol=0, atol=1e-6)
    folded[0].weight.data.zero_()
    assert module[0].weight.abs().sum() > 0
    with pytest.raises(ValueError, match="'edges'"):
        fold_task_norm(module, "edges")


@pytest.mark.parametrize("assign", [False, True])
def test_weights_of_a_plain_model_load_into_the_norms_of_all_tasks(assign: bool) -> None:
    source = network()
    source(images() * 2)
    nn.init.uniform_(source[1].weight)
    module = trained()
    state = source.state_dict()
    keys = list(state)
    module.load_state_dict(state, assign=assign)
    assert list(state) == keys
    for task in TASKS:
        loaded = fold_task_norm(module, task).state_dict()
        assert list(loaded) == keys
        assert all(torch.equal(loaded[key], state[key]) for key in keys)
    with torch.no_grad():
        module[1].norms["seg"].weight.fill_(7)
    assert (module[1].norms["depth"].weight != 7).all()


def test_its_own_weights_load_back_and_others_are_named() -> None:
    module = trained()
    other = network()
    convert_task_norm(other, TASKS, run)
    other.load_state_dict(module.state_dict())
    assert all(torch.equal(a, other.state_dict()[key]) for key, a in module.state_dict().items())
    state = network().state_dict() | {"1.scale": torch.ones(4)}
    with pytest.raises(RuntimeError, match=r"Unexpected.*1\.norms\.seg\.scale"):
        module.load_state_dict(state)
    del state["1.scale"], state["1.weight"]
    with pytest.raises(RuntimeError, match=r"Missing.*1\.norms\.seg\.weight"):
        module.load_state_dict(state)


def test_copies_and_pickles_keep_the_pairs() -> None:
    module = trained()
    for same in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same[1].conv is same[0] and same[4].conv is same[3]
        assert list(same.state_dict()) == list(module.state_dict())


def test_frozen_norms_stay_frozen_and_those_without_statistics_stay_so() -> None:
    module = network()
    module[1].requires_grad_(False).eval()
    module[4] = nn.BatchNorm2d(4, track_running_stats=False, affine=False)
    convert_task_norm(module, TASKS, run)
    for norm in module[1].norms.values():
        assert not norm.training and not norm.weight.requires_grad
    batch = images()
    with task_norm(module).of("seg"):
        torch.testing.assert_close(module(batch), fold_task_norm(module, "seg")(batch))


def test_modules_that_cannot_be_converted() -> None:
    with pytest.raises(ValueError, match="Sequential has no task-specific norm.*convert_task_norm"):
        task_norm(network())
    with pytest.raises(ValueError, match="already"):
        convert_task_norm(trained(), TASKS, run)
    for tasks in ([], ["seg", "seg"], "seg"):
        with pytest.raises(ValueError, match="list of different names"):
            convert_task_norm(network(), tasks, run)
    with pytest.raises(ValueError, match=r"its norms are GroupNorm$"):
        convert_task_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), TASKS, run)
    both = nn.ModuleList([network(), network()])
    convert_task_norm(both[0], TASKS, run)
    convert_task_norm(both[1], ["seg", "edges"], run)
    with pytest.raises(ValueError, match="different tasks"):
        task_norm(both)
