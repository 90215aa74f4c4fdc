import math

import pytest
import torch
import torchjd.scalarization
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mtl_plugins.weighting import FAMO

TASKS = ("a", "b", "c")
losses = st.fixed_dictionaries({task: st.floats(0.05, 20.0) for task in TASKS})
histories = st.lists(st.tuples(losses, losses), max_size=15)


def vector(by_task):
    return torch.tensor([by_task[t] for t in TASKS], dtype=torch.float64, requires_grad=True)


def learned(history, **options):
    weighting = FAMO(lr=0.1, **options)
    for old, new in history:
        weighting.update_after(old, new)
    return weighting


def shares(weighting):
    logits = torch.tensor([weighting.number(t) for t in TASKS], dtype=torch.float64)
    return logits.requires_grad_(), logits.softmax(dim=0)


@given(histories, losses, st.floats(0.0, 0.04))
def test_factors_are_the_slopes_of_the_objective(history, now, low):
    weighting = learned(history, min_losses=low)
    z = shares(weighting)[1].detach()
    values = vector(now)
    distance = values - low + 1e-8
    (expected,) = torch.autograd.grad(
        (z * distance.log()).sum() / (z / distance.detach()).sum(), values
    )
    weights = weighting.weights(TASKS, now)
    assert_close(vector(weights).detach(), expected)
    assert sum(weights.values()) == pytest.approx(1.0)


@given(histories, losses, losses)
def test_gradient_of_the_logits_runs_through_the_softmax(history, old, new):
    weighting = learned(history)
    logits, z = shares(weighting)
    fall = (vector(old) + 1e-8).log() - (vector(new) + 1e-8).log()
    (expected,) = torch.autograd.grad(z @ fall.detach(), logits)
    assert_close(vector(weighting.gradient(old, new)).detach(), expected)


@given(histories, losses)
def test_agrees_with_torchjd_over_several_steps(history, now):
    theirs = torchjd.scalarization.FAMO(3, lr=0.1, weight_decay=0.01).double()
    for old, new in history:
        theirs(vector(old))
        theirs.update(vector(new))
    values = vector(now)
    theirs(values).backward()
    ours = learned(history).weights(TASKS, now)
    assert_close(vector(ours).detach(), values.grad)


def test_what_fell_fast_gets_less():
    weighting, now = FAMO(), {"fast": 1.0, "slow": 1.0}
    assert weighting.weights(now, now) == {"fast": 0.5, "slow": 0.5}
    weighting.update_after(now, {"fast": 0.5, "slow": 0.9})
    weights = weighting.weights(now, now)
    assert weights["fast"] < 0.5 < weights["slow"]


def test_accumulated_batches_have_weights_of_their_own_and_one_update():
    weighting = FAMO()
    one, other = {"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 2.0}
    assert weighting.weights("ab", one) == pytest.approx({"a": 0.75, "b": 0.25})
    assert weighting.weights("ab", other) == pytest.approx({"a": 0.5, "b": 0.5})
    mean, new = {"a": 1.5, "b": 2.5}, {"a": 1.0, "b": 2.0}
    weighting.update_after(mean, new)
    twin = FAMO()
    twin.update_after(mean, new)
    assert weighting.state_dict() == twin.state_dict()


def test_batch_without_an_example_leaves_the_step_to_the_others():
    weighting, twin = FAMO(), FAMO()
    old, new = {"a": 1.0, "b": 3.0, "c": 0.0}, {"a": 0.7, "b": 2.0, "c": 0.5}
    weights = weighting.weights("abc", old)
    assert weights == twin.weights("ab", old) | {"c": 0.0}
    weighting.update_after(old, new)
    twin.update_after({"a": 1.0, "b": 3.0}, {"a": 0.7, "b": 2.0})
    assert weighting.state_dict() == twin.state_dict()
    assert weighting.weights("abc", dict.fromkeys("abc", 0.0))["c"] == pytest.approx(
        1 / 3, abs=0.02
    )


def test_loss_below_its_bound_is_an_error():
    message = (
        r"weighting: FAMO\.min_losses: the loss of the task 'b' is -0\.25, below its bound of 0"
    )
    with pytest.raises(ValueError, match=message):
        FAMO().weights("ab", {"a": 1.0, "b": -0.25})
    weighting = FAMO()  # after the step it is too late for an error
    weighting.update_after({"a": 1.0, "b": 1.0}, {"a": 0.5, "b": -0.25})
    assert set(weighting.state_dict()["numbers"]) == {"a"}
    bounded = FAMO(min_losses={"b": -1.0}, eps=0.0)
    bounded.check("ab")
    assert bounded.weights("ab", {"a": 1.5, "b": -0.25}) == pytest.approx({"a": 1 / 3, "b": 2 / 3})


def test_bound_of_an_unknown_task_is_an_error():
    with pytest.raises(KeyError, match=r"FAMO\.min_losses: .*'msk'; did you mean 'mask'"):
        FAMO(min_losses={"msk": 0.1}).check(["detection", "mask"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_loss_that_is_not_finite_does_not_reach_the_others(value):
    """The weights are asked for before anyone has looked at the losses."""
    weights = FAMO().weights("ab", {"a": 2.0, "b": value})
    assert weights == {"a": 1.0, "b": 0.0}
