"""The method's part of a checkpoint, and what to do where there is none or another one."""

from __future__ import annotations

import pytest
import torch

from mtl_plugins import MultiTaskBackward
from mtl_plugins.resume import KEY, Resume

RESUME = Resume("--go-on", "START_FROM", "our trainer")


def backward(aggregator: str) -> MultiTaskBackward:
    trunk = torch.nn.Parameter(torch.ones(2))
    built = MultiTaskBackward([trunk], aggregator=aggregator, tasks=("a", "b"))
    built({"a": trunk.sum(), "b": -trunk.square().sum()})
    return built


def test_state_comes_back():
    saved = {"optimizer": {}, KEY: backward("GradVac").state_dict()}
    restored = backward("GradVac")
    RESUME.load(restored, RESUME.take(saved))
    assert str(restored.state_dict()) == str(saved[KEY])


def test_checkpoint_of_somebody_else():
    message = "--go-on: the checkpoint was not written by our trainer. .*START_FROM.*leave --go-on"
    with pytest.raises(ValueError, match=message):
        RESUME.take({"optimizer": {}})


def test_checkpoint_of_another_method():
    message = "^--go-on: aggregator: .*GradVac, this run uses MGDA.*set START_FROM"
    with pytest.raises(ValueError, match=message):
        RESUME.load(backward("MGDA"), backward("GradVac").state_dict())
