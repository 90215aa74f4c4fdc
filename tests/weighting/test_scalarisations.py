"""GLS, STCH and Log: their weights are the derivative of a function of the losses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtl_plugins import MultiTaskBackward
from mtl_plugins.weighting import GLS, STCH, Log, build_weighting

TASKS = ("a", "b", "c", "d")
losses_of = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4).map(
    lambda values: dict(zip(TASKS, values, strict=False))
)


def by_autograd(scalarise, losses):
    x = torch.tensor(list(losses.values()), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(scalarise(x), x)
    return dict(zip(losses, slope.tolist(), strict=True))


@given(losses=losses_of)
@settings(max_examples=50)
def test_gls_is_the_geometric_mean(losses):
    expected = by_autograd(lambda x: x.prod() ** (1 / len(x)), losses)
    assert GLS().weights(losses, losses) == pytest.approx(expected, rel=1e-9)


@given(losses=losses_of)
@settings(max_examples=50)
def test_log_is_the_sum_of_logarithms(losses):
    expected = by_autograd(lambda x: x.log().sum(), losses)
    assert Log(eps=0.0).weights(losses, losses) == pytest.approx(expected, rel=1e-9)


@given(losses=losses_of, mu=st.sampled_from([0.1, 1.0, 30.0]))
@settings(max_examples=50)
def test_stch_is_the_smooth_maximum(losses, mu):
    preference, ideal = {"a": 0.5, "c": 2.0}, {"a": -1.0, "b": 0.3}
    factors = torch.tensor([preference.get(t, 1.0) for t in losses], dtype=torch.float64)
    ideals = torch.tensor([ideal.get(t, 0.0) for t in losses], dtype=torch.float64)

    def scalarise(x: Tensor) -> Tensor:
        return mu * torch.logsumexp(factors * (x - ideals) / mu, dim=0)

    weights = STCH(mu, preference, ideal).weights(losses, losses)
    assert weights == pytest.approx(by_autograd(scalarise, losses), rel=1e-9, abs=1e-12)


def test_stch_with_little_smoothness_is_the_largest_alone():
    losses = {"a": 1.0, "b": 3.0, "c": 2.0}
    weights = STCH(mu=1e-3).weights(losses, losses)
    assert weights == pytest.approx({"a": 0.0, "b": 1.0, "c": 0.0})


def test_gls_leaves_out_a_loss_of_zero():
    losses = {"a": 4.0, "b": 0.0, "c": 1.0}
    assert GLS().weights(losses, losses) == pytest.approx({"a": 0.25, "b": 0.0, "c": 1.0})


def test_gls_refuses_a_negative_loss():
    with pytest.raises(ValueError, match=r"GLS\.min_losses: the loss of the task 'b' is -2, below"):
        GLS().weights(("a", "b"), {"a": 1.0, "b": -2.0})
    weights = GLS({"b": -3.0}).weights(("a", "b"), {"a": 4.0, "b": -2.0})
    assert weights == pytest.approx({"a": 2.0 / 8.0, "b": 2.0 / 2.0})
    with pytest.raises(KeyError, match=r"GLS\.min_losses: no task is called 'bb'"):
        GLS({"bb": 0.0}).check(TASKS)


@pytest.mark.parametrize(
    ("cfg", "scalarise"),
    [
        ("GLS", lambda a, b: (a * b).sqrt()),
        ("Log", lambda a, b: a.log() + b.log()),
        ({"type": "STCH", "mu": 0.5}, lambda a, b: 0.5 * ((2 * a).exp() + (2 * b).exp()).log()),
    ],
    ids=["GLS", "Log", "STCH"],
)
def test_gradient_of_a_model(cfg, scalarise):
    """As that of the function itself."""
    model = torch.nn.Linear(3, 2).double()
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def losses():
        y = model(x)
        return y[:, 0].square().mean(), (y[:, 1] - 1.0).square().mean()

    expected = torch.autograd.grad(scalarise(*losses()), list(model.parameters()))
    MultiTaskBackward(model.parameters(), weighting=cfg)(dict(zip("ab", losses(), strict=True)))
    for p, grad in zip(model.parameters(), expected, strict=True):
        # A step takes the losses, and so the weights, in single precision.
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": 0.0}, "mu: expected more than 0, got 0"),
        ({"preference": [1.0]}, "preference: expected a dict by task"),
        ({"ideal": 0.5}, "ideal: expected a dict by task"),
        ({"preference": {"a": -1.0}}, "preference: expected numbers of at least 0"),
    ],
)
def test_stch_with_wrong_options(options, message):
    with pytest.raises((TypeError, ValueError), match=f"weighting: STCH: {message}"):
        build_weighting({"type": "STCH"} | options)


@pytest.mark.parametrize("key", ["preference", "ideal"])
def test_stch_with_a_task_that_is_not_there(key):
    with pytest.raises(KeyError, match=rf"STCH\.{key}: no task is called 'aa'; did you mean 'a'"):
        STCH(**{key: {"aa": 1.0}}).check(TASKS)


@pytest.mark.parametrize("weighting", [GLS(), Log(), STCH()])
def test_not_finite_is_left_to_the_step(weighting):
    losses = {"a": math.nan, "b": 2.0}
    assert all(map(math.isfinite, weighting.weights(losses, losses).values()))
