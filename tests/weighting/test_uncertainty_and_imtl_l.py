"""Two methods that differ in sign and a factor: one learns log variances, one log weights."""

import math

import pytest
import torch
import torchjd.scalarization
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mtl_plugins.weighting import IMTLL, Uncertainty

TASKS = ("a", "b", "c")
OBJECTIVE = {
    Uncertainty: lambda s, loss: 0.5 * math.exp(-s) * loss + 0.5 * s,
    IMTLL: lambda s, loss: math.exp(s) * loss - s,
}
both = pytest.mark.parametrize("method", [Uncertainty, IMTLL])
losses = st.fixed_dictionaries({task: st.floats(0.05, 20.0) for task in TASKS})


def learned(method, history):
    weighting = method(lr=0.1)
    for step in history:
        weighting.update(step)
    return weighting


@both
@given(history=st.lists(losses, max_size=20), now=losses)
def test_gradient_and_weight_are_the_slopes_of_the_objective(method, history, now):
    weighting, objective, h = learned(method, history), OBJECTIVE[method], 1e-5
    gradient, weights = weighting.gradient(now), weighting.weights(TASKS)
    for t, loss in now.items():
        s = weighting.number(t)
        slope = (objective(s + h, loss) - objective(s - h, loss)) / (2 * h)
        assert_close(gradient[t], slope, rtol=1e-6, atol=1e-6)
        slope = (objective(s, loss + h) - objective(s, loss - h)) / (2 * h)
        assert_close(weights[t], slope, rtol=1e-6, atol=1e-6)


@both
@given(history=st.lists(losses, min_size=1, max_size=20))
def test_agrees_with_torchjd_under_adam(method, history):
    theirs = {Uncertainty: torchjd.scalarization.UW, IMTLL: torchjd.scalarization.IMTLL}[method](3)
    theirs.double()
    adam = torch.optim.Adam(theirs.parameters(), lr=0.1)
    for step in history:
        values = torch.tensor([step[t] for t in TASKS], dtype=torch.float64, requires_grad=True)
        adam.zero_grad()
        theirs(values).backward()
        adam.step()
    values.grad = None
    theirs(values).backward()
    weights = learned(method, history).weights(TASKS)
    assert_close(torch.tensor(list(weights.values()), dtype=torch.float64), values.grad)


@both
def test_constant_losses_find_their_inverse(method):
    constant = {"a": 0.02, "b": 1.0, "c": 30.0}
    weighting = method(lr=0.05)
    for _ in range(1500):
        weighting.update(constant)
    at_optimum = 0.5 if method is Uncertainty else 1.0
    for t, weight in weighting.weights(TASKS).items():
        assert_close(weight * constant[t], at_optimum, rtol=1e-3, atol=0.0)


@both
def test_first_weights(method):
    assert method().weights(["a", "b"]) == dict.fromkeys("ab", OBJECTIVE[method](0.0, 1.0))


@both
def test_batch_without_an_example_teaches_nothing(method):
    weighting, twin = (learned(method, [{"a": 3.0, "b": 0.2}]) for _ in range(2))
    weighting.update({"a": 0.0, "b": 0.4})
    twin.update({"b": 0.4})
    assert weighting.state_dict() == twin.state_dict()


@both
def test_long_stretch_of_tiny_losses_is_not_added_up(method):
    weighting = method(lr=1.0)
    for _ in range(2000):
        weighting.update({"a": 1e-30})
    bound = weighting.weights(["a"])["a"]
    assert 1e8 < bound < 1e9
    for _ in range(50):
        weighting.update({"a": 1.0})
    assert weighting.weights(["a"])["a"] < 1e-3 * bound


def test_uncertainty_begins_where_it_is_told():
    weighting = Uncertainty(lr=0.1, initial=-0.5)
    assert weighting.weights(TASKS) == dict.fromkeys(TASKS, 0.5 * math.exp(0.5))
    weighting.update({"a": 3.0})
    assert weighting.number("a") == pytest.approx(-0.4)  # a first step of Adam
    assert weighting.number("b") == -0.5
    with pytest.raises(ValueError, match=r"initial: expected a number in \[-20, 20\], got -30"):
        Uncertainty(initial=-30.0)
