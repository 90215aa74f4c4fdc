import math

import pytest
import torch
import torchjd.scalarization
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mtl_plugins.weighting import DWA

TASKS = ("a", "b", "c")


def test_agrees_with_equation_7_written_out():
    losses = [
        {"a": 4.0, "b": 1.0},
        {"a": 2.0, "b": 3.0},
        {"a": 1.0, "b": 1.0},
        {"a": 2.0, "b": 5.0},
    ]
    weighting = DWA(temperature=0.7, window=2)
    for step in losses:
        assert weighting.weights("ab") == pytest.approx({"a": 1.0, "b": 1.0})
        weighting.update(step)
    a, b = (math.exp(ratio / 0.7) for ratio in (1.5 / 3.0, 3.0 / 2.0))
    expected = {"a": 2.0 * a / (a + b), "b": 2.0 * b / (a + b)}
    assert weighting.weights("ab") == pytest.approx(expected)
    weighting.update({"a": 9.0, "b": 0.1})  # the next window has just begun
    assert weighting.weights("ab") == pytest.approx(expected)


@given(window=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_agrees_with_torchjd(window, seed):
    rng = torch.Generator().manual_seed(seed)
    ours, theirs = DWA(temperature=1.3), torchjd.scalarization.DWA(temperature=1.3)
    ours.steps_per_epoch = window
    for step in range(5 * window):
        losses = torch.rand(3, generator=rng, dtype=torch.float64) + 0.1
        weights = ours.weights(TASKS)
        (expected,) = torch.autograd.grad(theirs(losses.requires_grad_()), losses)
        assert_close(torch.tensor(list(weights.values()), dtype=torch.float64), expected)
        ours.update(dict(zip(TASKS, losses.tolist(), strict=True)))
        if (step + 1) % window == 0:
            theirs.step()


@given(st.data())
def test_agrees_with_a_plain_loop_when_tasks_come_and_go(data):
    """Means are over the steps in which the task took part; without one the ratio is 1."""
    step = st.dictionaries(st.sampled_from("abcd"), st.floats(0.1, 10.0))
    history = data.draw(st.lists(step, max_size=16))
    asked = data.draw(st.lists(st.sampled_from("abcd"), unique=True, min_size=1))
    weighting = DWA(window=3)
    for losses in history:
        weighting.update(losses)

    full = len(history) // 3
    ratios = []
    for task in asked:
        last, before = (
            [s[task] for s in history[3 * e : 3 * e + 3] if task in s] if e >= 0 else []
            for e in (full - 1, full - 2)
        )
        both = last and before
        ratios.append(sum(last) / len(last) * len(before) / sum(before) if both else 1.0)
    expected = len(asked) * torch.tensor(ratios, dtype=torch.float64).div(2.0).softmax(dim=0)
    weights = weighting.weights(asked)
    assert list(weights) == asked
    assert list(weights.values()) == pytest.approx(expected.tolist())
    assert sum(weights.values()) == pytest.approx(len(asked))


def test_window_comes_before_the_epoch():
    weighting = DWA(window=1)
    weighting.steps_per_epoch = 100
    weighting.update({"a": 1.0, "b": 1.0})
    weighting.update({"a": 0.5, "b": 1.0})
    weights = weighting.weights("ab")
    assert weights["a"] < weights["b"]


@pytest.mark.parametrize(("total", "window"), [(400, 4), (30, 1)])
def test_in_a_run_without_epochs_a_window_is_a_hundredth_of_it(total, window):
    by_default, given = DWA(), DWA(window=window)
    by_default.total_steps = total
    for step in range(5 * window):
        losses = {"a": 1.0 / (1 + step), "b": 1.0 + step}
        assert by_default.weights("ab") == given.weights("ab")
        by_default.update(losses)
        given.update(losses)
    assert given.weights("ab")["a"] < 1.0


def test_where_the_length_of_the_run_is_unknown_the_window_has_to_be_given():
    with pytest.raises(ValueError, match=r"weighting: DWA\.window: .* neither is known"):
        DWA().weights(["a"])


@pytest.mark.parametrize("option", [{"temperature": 0.0}, {"window": 0}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        DWA(**option)
