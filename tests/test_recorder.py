"""When measures are asked for, and what is read of them."""

from __future__ import annotations

import pytest
import torch

from mtl_plugins import MultiTaskBackward
from mtl_plugins.recorder import Recorder

KEYS = ("hook.interval", "hook.measures")


def losses(trunk: torch.nn.Parameter, tasks: str) -> dict[str, torch.Tensor]:
    known = {"a": trunk.sum(), "b": trunk.square().sum(), "c": 0.0 * trunk.sum()}
    return {task: known[task] for task in tasks}


def test_record_waits_for_the_step_of_an_accumulation():
    """Due at iterations 2 and 4, which end within accumulations of three."""
    trunk = torch.nn.Parameter(torch.ones(2))
    backward = MultiTaskBackward([trunk], aggregator="Sum", tasks=("a", "b"))
    recorder = Recorder(2, ["gds"], *KEYS)
    recorded = []
    for iteration in range(1, 7):
        recorder.before_step(backward, iteration)
        backward(losses(trunk, "ab"), aggregate=iteration % 3 == 0, share=1 / 3)
        if scalars := recorder.after_step(backward):
            recorded.append((iteration, scalars))
    assert [iteration for iteration, _ in recorded] == [3, 6]
    # (1, 1) and (2, 2) point the same way.
    assert recorded[0][1]["mtl/gds"] == pytest.approx(1.0)


def test_absent_tasks_are_reported_once():
    """For want of a loss, or of a gradient where that is measured."""
    trunk = torch.nn.Parameter(torch.ones(2))
    backward = MultiTaskBackward([trunk], aggregator="MGDA", tasks=("a", "b", "c"))
    recorder = Recorder(10, ["gds"], *KEYS)

    def period(tasks: str) -> list[str]:
        recorder.before_step(backward, 1)
        backward(losses(trunk, tasks))
        recorder.after_step(backward)
        return [warning.split("'")[1] for warning in recorder.absent(backward, "a day")]

    assert period("abc") == ["c"]
    assert period("ac") == ["b"]
    assert period("a") == []


@pytest.mark.parametrize(
    ("interval", "measures", "message"),
    [
        (0, ["gds"], "hook.interval: expected an integer of at least 1, got 0"),
        (2.5, ["gds"], "hook.interval: expected an integer of at least 1, got 2.5"),
        (2, "gds", "hook.measures: expected a list, got 'gds'"),
        (2, ["gdss"], "hook.measures: 'gdss' is none; did you mean 'gds'"),
    ],
)
def test_wrong_arguments_name_the_key(interval, measures, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Recorder(interval, measures, *KEYS)
