"""Layers that each task has for itself, against networks that were copied by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mtl_plugins import MultiTaskBackward
from mtl_plugins.task_layers import TaskLayer, TaskLayers, convert_task_layers
from mtl_plugins.task_norm import convert_task_norm

TASKS = ["a", "b"]
X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def trunk() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    )


def test_forward_and_gradients_are_those_of_networks_with_tied_layers():
    """One plain network a task; what is shared has the sum of their gradients."""
    shared = trunk()
    plain = {t: copy.deepcopy(shared) for t in TASKS}
    convert_task_layers(shared, ["1", "3"], TASKS)
    layers = TaskLayers(shared)
    for t, factor in zip(TASKS, (0.5, 2.0), strict=True):  # let the copies differ
        for name in ("1", "3"):
            for mine, theirs in zip(
                shared.get_submodule(f"{name}.copies.{t}").parameters(),
                plain[t].get_submodule(name).parameters(),
                strict=True,
            ):
                mine.data *= factor
                theirs.data.copy_(mine)
    losses = {}
    for t in TASKS:
        with layers.of(t):
            losses[t] = shared(X).square().mean()
        plain[t](X).square().mean().backward()
    MultiTaskBackward(shared.parameters(), "Sum")(losses)
    for name, p in shared.named_parameters():
        if ".copies." in name:
            layer, _, rest = name.split(".", 2)
            task, kind = rest.split(".")
            expected = plain[task].get_submodule(layer).get_parameter(kind).grad
        else:
            expected = sum(plain[t].get_parameter(name).grad for t in TASKS)
        assert_close(p.grad, expected)


def test_every_layer_converted_shares_nothing():
    shared = trunk()
    before = sum(p.numel() for p in shared.parameters())
    convert_task_layers(shared, ["0", "1", "3", "4"], TASKS)
    assert sum(p.numel() for p in shared.parameters()) == 2 * before
    layers, losses = TaskLayers(shared), {}
    for t in TASKS:
        with layers.of(t):
            losses[t] = shared(X).square().mean()
    backward = MultiTaskBackward(shared.parameters(), "PCGrad")
    backward(losses)
    assert backward.last.gramian.abs().max() == 0.0  # of what the tasks share


def test_weights_of_the_plain_model_load_into_all_copies():
    plain, shared = trunk(), trunk()
    for p in plain.parameters():
        p.data += 1.0
    convert_task_layers(shared, ["0", "1"], TASKS)
    for assign in (False, True):
        shared.load_state_dict(plain.state_dict(), assign=assign)
        for t in TASKS:
            assert torch.equal(shared[0].copies[t].weight, plain[0].weight)
            assert torch.equal(shared[1].copies[t].running_mean, plain[1].running_mean)
        assert shared[0].copies["a"].weight is not shared[0].copies["b"].weight
    again = trunk()
    convert_task_layers(again, ["0", "1"], TASKS)
    shared[0].copies["a"].weight.data.zero_()
    again.load_state_dict(shared.state_dict())
    assert not again[0].copies["a"].weight.any() and again[0].copies["b"].weight.any()


def test_layer_with_two_names_stays_one():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.Linear(2, 2)

    model = Twice()
    convert_task_layers(model, ["second"], TASKS)
    assert model.first is model.second and isinstance(model.first, TaskLayer)


def test_choice_ends_with_the_block_after_an_error_too():
    shared = trunk()
    convert_task_layers(shared, ["0"], TASKS)
    with pytest.raises(ZeroDivisionError), TaskLayers(shared).of("b"):
        assert shared[0].task == "b"
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="called without a task.* one of a, b"):
        shared(X)


@pytest.mark.parametrize(
    ("names", "tasks", "message"),
    [
        (["9"], TASKS, "has no layer '9'; .*Valid: 0, 1, 3, 4"),
        (["2"], TASKS, "'2' .ReLU. has no parameter"),
        (["0", "0"], TASKS, "names must be a list of different layers"),
        ("0", TASKS, "names must be a list"),
        ([], TASKS, "names must be a list"),
        (["0"], ["a", "a"], "tasks must be a list of different names"),
        (["0"], "ab", "tasks must be a list"),
    ],
)
def test_refused(names, tasks, message):
    with pytest.raises(ValueError, match=message):
        convert_task_layers(trunk(), names, tasks)


def test_task_specific_already():
    shared = trunk()
    convert_task_norm(shared, TASKS, lambda net: net(X))
    with pytest.raises(ValueError, match="'1' is task-specific already"):
        convert_task_layers(shared, ["1"], TASKS)
    with pytest.raises(ValueError, match="'1.norms.a' is task-specific already"):
        convert_task_layers(shared, ["1.norms.a"], TASKS)
    outer = nn.Sequential(trunk())
    with pytest.raises(ValueError, match="'0' holds another of the layers"):
        convert_task_layers(outer, ["0", "0.1"], TASKS)


def test_no_layer():
    with pytest.raises(ValueError, match="call convert_task_layers first"):
        TaskLayers(trunk())
    shared = trunk()
    convert_task_layers(shared, ["0"], TASKS)
    with pytest.raises(ValueError, match="no layer is of the task 'c'"), TaskLayers(shared).of("c"):
        pass
