"""Achievement against its formula, by autograd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtl_plugins.weighting import GLS, Achievement, build_weighting

TASKS = ("a", "b", "c")
numbers = st.lists(st.floats(0.05, 0.95), min_size=3, max_size=3)
losses_of = st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3)


@given(numbers, numbers, losses_of, st.floats(0.5, 3.0))
def test_slope_of_the_weighted_geometric_mean(accuracies, potentials, losses, gamma):
    weighting = Achievement(dict(zip(TASKS, potentials, strict=True)), gamma=gamma)
    weighting.tell(dict(zip(TASKS, accuracies, strict=True)))
    a, p = (torch.tensor(v, dtype=torch.float64) for v in (accuracies, potentials))
    w = (1.0 - a / (1.05 * p)).clamp(min=0.0).pow(gamma).softmax(dim=0)
    x = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((w * x.log()).sum().exp(), x)
    found = weighting.weights(TASKS, dict(zip(TASKS, losses, strict=True)))
    assert found == pytest.approx(dict(zip(TASKS, slope.tolist(), strict=True)), rel=1e-6)


@given(losses_of)
def test_before_the_first_validation_it_is_gls(losses):
    losses = dict(zip(TASKS, losses, strict=True))
    weighting = Achievement(dict.fromkeys(TASKS, 0.5))
    assert weighting.weights(TASKS, losses) == pytest.approx(GLS().weights(TASKS, losses))


def test_the_task_that_is_farthest_from_its_potential_leads():
    weighting = Achievement({"a": 0.5, "b": 80.0, "c": 0.2})
    # The potential of b is in percent, that of c an error: its share is 0.2 / 0.8.
    weighting.tell({"a": 0.45, "b": 40.0, "c": 0.8}, errors=["c"], percent=["b"])
    weights = weighting.weights(TASKS, dict.fromkeys(TASKS, 1.0))
    shares = {"a": 0.9, "b": 0.5, "c": 0.25}
    powers = {t: math.exp((1.0 - s / 1.05) ** 2) for t, s in shares.items()}
    assert weights == pytest.approx({t: p / sum(powers.values()) for t, p in powers.items()})


def test_a_loss_of_zero_takes_no_part():
    weighting = Achievement({"a": 0.5, "b": 0.5})
    weights = weighting.weights("ab", {"a": 0.0, "b": 2.0})
    assert weights == {"a": 0.0, "b": pytest.approx(1.0)}


@pytest.mark.parametrize(
    ("potential", "message"),
    [
        ({"a": 0.5}, "Achievement.potential: the metric of a model of 'b' alone is missing"),
        ({"a": 0.5, "b": 0.4, "x": 0.1}, "Achievement.potential: no task is called 'x'"),
        ({"a": 0.5, "b": -0.4}, "potential: expected numbers above 0"),
        (0.5, "potential: expected a dict by task"),
    ],
)
def test_errors(potential, message):
    with pytest.raises((KeyError, TypeError, ValueError), match=message):
        build_weighting({"type": "Achievement", "potential": potential}).check("ab")


def test_potential_in_another_unit_than_the_metric():
    weighting = Achievement({"a": 38.2})
    with pytest.raises(ValueError, match="of 'a' is in the unit of its metric, a fraction"):
        weighting.tell({"a": 0.3})
    with pytest.raises(ValueError, match="percent, and so above 1"):
        Achievement({"a": 0.382}).tell({"a": 30.0}, percent=["a"])
