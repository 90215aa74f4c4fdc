"""States with a key missing or one too many, as another version would have written them."""

from __future__ import annotations

import copy

import pytest
import torch
from models import method

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import AGGREGATORS, build_aggregator
from mtl_plugins.allocation import TaskAllocation
from mtl_plugins.layer_conflicts import LayerConflicts
from mtl_plugins.regularization import CosReg
from mtl_plugins.rotations import RotationOptimizer, Rotations
from mtl_plugins.sketch import Sketcher
from mtl_plugins.tasks import TaskGroups
from mtl_plugins.weighting import WEIGHTINGS, build_weighting

WEIGHTING_OPTIONS = {
    "Fixed": {"weights": {"a": 1.0}},
    "Achievement": {"potential": {"a": 0.5}},
    "DWA": {"window": 2},
}
PARTS = {name: lambda name=name: build_aggregator(method(name)) for name in AGGREGATORS}
PARTS |= {
    name: lambda name=name: build_weighting({"type": name} | WEIGHTING_OPTIONS.get(name, {}))
    for name in WEIGHTINGS
}
PARTS |= {
    "CosReg": CosReg,
    "Sketcher": lambda: Sketcher(4),
    "TaskGroups": lambda: TaskGroups({"a": "loss_a"}),
    "TaskAllocation": lambda: TaskAllocation("ab"),
    "LayerConflicts": lambda: LayerConflicts(torch.nn.Linear(1, 1)),
    "RotationOptimizer": lambda: RotationOptimizer(Rotations("ab", [3]), 0.1, 0.9),
}
NESTED = ("aggregator", "weighting", "state", "base", "last_layer", "sketch")


def damaged(state, keys=()):
    """Yield copies of a state without one of its keys, and with one too many, at any depth."""
    for key in [*state, "another"]:
        copied = copy.deepcopy(state)
        if key in state:
            del copied[key]
        else:
            copied[key] = 1
        yield (*keys, key), copied
        if key in NESTED and key in state:
            for path, inner in damaged(state[key], (*keys, key)):
                yield path, {**copy.deepcopy(state), key: inner}


@pytest.mark.parametrize("name", PARTS)
def test_part(name):
    part = PARTS[name]()
    state = part.state_dict()
    for path, other in damaged(state):
        with pytest.raises(ValueError, match=repr(path[-1])) as error:
            part.load_state_dict(other)
        assert "another version" in str(error.value)
    part.load_state_dict(state)


def backward(**options):
    torch.manual_seed(0)
    trunk = torch.nn.Parameter(torch.randn(4, 3))
    heads = [torch.nn.Parameter(torch.randn(4)) for _ in range(2)]
    built = MultiTaskBackward([trunk, *heads], tasks=("a", "b"), **options)
    features = trunk @ torch.randn(3)
    built({"a": (features @ heads[0]).square(), "b": (features @ heads[1]).square()})
    return built


BACKWARDS = {
    "GradVacByParameter": {"aggregator": "GradVacByParameter"},
    "MCLGS": {"aggregator": method("MCLGS")},
    "GradNorm": {"aggregator": "PCGrad", "weighting": "GradNorm"},
    "sketch": {"aggregator": "MGDA", "gramian": "sketch", "sketch_rows": 4},
}


@pytest.mark.parametrize("name", BACKWARDS)
def test_whole(name):
    built = backward(**BACKWARDS[name])
    state = built.state_dict()
    assert ("sketch" in state) == (name == "sketch") and "evident" in state
    for path, other in damaged(state):
        if path == ("sketch",):
            built.load_state_dict(other)  # a run may change to sketches: they are drawn anew
            continue
        with pytest.raises(ValueError, match=path[-1]) as error:
            built.load_state_dict(other)
        assert ("written with None" if path == ("weighting",) else "version") in str(error.value)
