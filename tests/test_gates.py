"""The gate table: a head of a user joins it in a few lines."""

from __future__ import annotations

import doctest
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mtl_plugins import gates
from mtl_plugins.allocation import Allocated
from mtl_plugins.gates import GateTable
from mtl_plugins.gating import AllocationGates
from mtl_plugins.tasks import TaskGroups


def example_of_the_docstring() -> dict[str, Any]:
    """Runs the example, and returns the names that it makes."""
    found: dict[str, Any] = {"torch": torch, "nn": nn}
    (test,) = doctest.DocTestFinder(recurse=False).find(GateTable, globs=found)
    result = doctest.DocTestRunner().run(test, clear_globs=False)
    assert result.attempted > 2 and not result.failed
    return test.globs


class Model(nn.Module):
    """Two heads of the example on one layer; only one of them has a name that a gate knows."""

    def __init__(self, head: type[nn.Module]) -> None:
        super().__init__()
        self.trunk, self.depth = nn.Linear(3, 4), head()

    def forward(self, x: Tensor, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return self.depth.loss(self.trunk(x), samples)


def gated_model(groups: TaskGroups, table: GateTable, head: type[nn.Module]) -> nn.Module:
    class Gates(AllocationGates):
        key, tasks_key = "allocation", "tasks"

        def examples(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[Any]:
            return [sample.get("tasks") for sample in args[1]]

    Gates.table = table
    torch.manual_seed(0)
    model = Model(head)
    Gates(model, groups)
    return model


SAMPLES = [{"depth": 1.0, "tasks": ("a",)}, {"depth": 2.0, "tasks": ("b",)}]
X = torch.linspace(-1.0, 1.0, 6).reshape(2, 3)
GROUPS = {"a": "loss_depth", "b": "loss_other"}


def test_the_example_restricts_a_head_of_a_user():
    names = example_of_the_docstring()
    model = gated_model(TaskGroups(GROUPS), names["GATES"], names["DepthHead"])
    plain = Model(names["DepthHead"])
    plain.load_state_dict(model.state_dict())
    assert_close(model(X, SAMPLES), plain(X[:1], SAMPLES[:1]))
    (nothing,) = model(X, SAMPLES[1:] * 2).values()
    nothing.backward()
    assert nothing == 0.0 and not model.depth.predict.weight.grad.any()
    assert model.trunk.weight.grad is None


def test_a_head_without_a_gate_is_refused():
    names = example_of_the_docstring()
    model = gated_model(TaskGroups(GROUPS), GateTable(), names["DepthHead"])
    with pytest.raises(ValueError, match="computes 'loss_depth' of the task 'a' on all images"):
        model(X, SAMPLES)


def test_a_loss_added_beside_the_gate_is_refused():
    """The name is that of a gated loss, and the value is not."""
    names = example_of_the_docstring()
    model = gated_model(TaskGroups(GROUPS), names["GATES"], names["DepthHead"])
    model.register_forward_hook(
        lambda model, args, losses: {"loss_depth": losses["loss_depth"] + model.trunk.bias.sum()},
        prepend=True,
    )
    with pytest.raises(ValueError, match="computes 'loss_depth' of the task 'a' on all images"):
        model(X, SAMPLES)


def test_entries_of_other_images_are_refused():
    names = example_of_the_docstring()
    model = gated_model(TaskGroups(GROUPS), names["GATES"], names["DepthHead"])
    loss = model.depth.loss
    model.depth.loss = lambda x, samples: loss(x.repeat(2, 1), samples)
    with pytest.raises(ValueError, match=r"depth \(DepthHead\) gets 'x' with \[4\] .* 2 images"):
        model(X, SAMPLES)


@pytest.mark.parametrize(
    ("method", "maps", "message"),
    [
        ("losss", ["x"], "DepthHead has no method 'losss'"),
        ("loss", ["features"], "DepthHead.loss has no argument 'features'; .*Valid: x, samples"),
    ],
)
def test_a_mistake_is_told_when_it_is_registered(method, maps, message):
    head = example_of_the_docstring()["DepthHead"]
    with pytest.raises(TypeError, match=message):
        GateTable().register(head, method, losses=["loss_depth"], maps=maps)


def test_tasks_of_images_are_those_of_the_config():
    names = example_of_the_docstring()
    model = gated_model(TaskGroups(GROUPS), names["GATES"], names["DepthHead"])
    samples = [sample | {"tasks": Allocated(("a",), ("a",))} for sample in SAMPLES]
    with pytest.raises(ValueError, match=r"allocation.tasks: \['a'\] leaves out \['b'\] of tasks"):
        model(X, samples)


def test_the_rows_of_nested_maps():
    x = torch.arange(6).reshape(3, 2)
    found = gates.select({"levels": [x, (x,)], "none": None}, [2, 0])
    assert_close(found["levels"][1][0], torch.tensor([[4, 5], [0, 1]]))
    assert found["none"] is None
