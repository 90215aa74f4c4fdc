"""FairGrad against its equation, scipy's least squares, and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from strategies import full_rank, jacobians, make_jacobian, well_scaled
from torch.testing import assert_close

from mtl_plugins.aggregation import FairGrad, NashMTL
from mtl_plugins.aggregation.solvers import NotConverged

# With norms 1e20 apart and a larger exponent, the weights themselves are beyond a double.
cases = st.one_of(
    st.tuples(jacobians(), st.sampled_from([0.2, 0.5, 0.9, 1.0, 2.0])),
    st.tuples(well_scaled, st.sampled_from([5.0, 20.0])),
)


@given(case=cases)
@settings(max_examples=150)
def test_allocation_condition(case):
    jacobian, alpha = case
    gramian = jacobian @ jacobian.T
    fair = FairGrad(alpha, max_norm=0.0)
    w = fair.weights(gramian)
    assert fair.fallbacks == 0
    assert (w > 0).all()
    # Up to what cancels: of norms 1e20 apart, 16 digits do not hold the sum.
    wanted = w ** (-1 / alpha)
    assert ((gramian @ w - wanted).abs() <= 1e-7 * (gramian.abs() @ w + wanted)).all()


@given(jacobian=full_rank, alpha=st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=15)
def test_agrees_with_least_squares(jacobian, alpha):
    """As the authors solve it."""
    g = (jacobian @ jacobian.T).numpy()
    found = least_squares(
        lambda x: g @ x - (1 / x) ** (1 / alpha),
        np.ones(len(g)) / len(g),
        bounds=(0, np.inf),
        xtol=1e-13,
        ftol=1e-13,
        gtol=1e-13,
    )
    w = FairGrad(alpha, max_norm=0.0).weights(jacobian @ jacobian.T)
    if found.cost < 1e-10:  # it does not always get there
        assert_close(w, torch.tensor(found.x), rtol=1e-3, atol=1e-6)


@given(jacobian=full_rank)
@settings(max_examples=20)
def test_with_alpha_1_it_is_nash_mtl(jacobian):
    assert_close(FairGrad(1.0)(jacobian), NashMTL()(jacobian))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_orthogonal_gradients_in_closed_form(alpha):
    """n² w = w^(-1/α)."""
    norms = torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64)
    w = FairGrad(alpha, max_norm=0.0).weights(norms.square().diag())
    assert_close(w, norms ** (-2 * alpha / (1 + alpha)))


def test_norm_is_clipped():
    jacobian = make_jacobian("random", 6, 0) * 1e-3  # the shorter the gradients, the longer it is
    free = FairGrad(max_norm=0.0)(jacobian)
    assert free.norm() > 1.0
    assert_close(FairGrad()(jacobian), free / free.norm())
    assert_close(FairGrad(max_norm=1e6)(jacobian), free)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_pareto_stationary_point_is_bounded(alpha, dtype):
    jacobian = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=dtype)
    fair = FairGrad(alpha)
    update = fair(jacobian)
    assert fair.fallbacks == 0
    assert update.norm() <= 1.0 + 1e-6
    assert update[1] > 0.5  # the task without an opponent is served


def test_fallback_is_clipped(monkeypatch):
    def fail(*args):
        raise NotConverged("by the test")

    monkeypatch.setattr("mtl_plugins.aggregation.fairgrad.fair_allocation", fail)
    fair = FairGrad()
    update = fair(1e5 * torch.eye(4, dtype=torch.float64))
    assert fair.fallbacks == 1
    assert_close(update, torch.full((4,), 0.5).double())
