import pytest
import torch
import torchjd.aggregation
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import jacobians, well_scaled
from torch.testing import assert_close

from mtl_plugins.aggregation import CAGrad

radii = st.sampled_from([0.1, 0.4, 0.9, 1.5])


@given(jacobian=jacobians(), c=radii)
@settings(max_examples=150)
def test_kkt_conditions_of_the_primal(jacobian, c):
    """``max min_t g_t·d`` in the ball: on its boundary, and pulled only by the worst tasks."""
    w = CAGrad(c, rescale=0).weights(jacobian @ jacobian.T)
    g_0 = jacobian.mean(dim=0)
    norms = jacobian.norm(dim=1)
    pull = (w - 1 / len(w)) * norms  # d - g_0 in unit gradients
    assert (pull >= -1e-12 * g_0.norm()).all()
    step = pull @ (jacobian / norms[:, None])
    assume(step.norm() > 0)
    # The tests' gradients are not Pareto stationary, so that the radius is used up.
    assert_close(step.norm(), c * g_0.norm(), rtol=1e-6, atol=0)
    level = jacobian @ (g_0 + step)
    # Rounding of g_t·g_0 is relative to the two norms, also when the worst level is near 0.
    slack = 1e-8 * norms * g_0.norm()
    assert (level >= level.min() - slack).all()
    pulling = pull > 1e-6 * g_0.norm()
    lowest = (level + slack).min()
    assert (level[pulling] <= lowest + 2 * slack[pulling]).all()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("c", [0.2, 0.4, 0.8])
def test_two_tasks_by_brute_force(seed, c):
    """In the plane, every update of the ball is tried."""
    torch.manual_seed(seed)
    jacobian = torch.randn(2, 2, dtype=torch.float64)
    g_0 = jacobian.mean(dim=0)
    angle = torch.linspace(0, 2 * torch.pi, 400_001, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    candidates = g_0 + c * g_0.norm() * circle  # a linear function is largest on the boundary
    best = (candidates @ jacobian.T).amin(dim=1).max()
    d = CAGrad(c, rescale=0)(jacobian)
    assert_close((jacobian @ d).min(), best, rtol=0, atol=1e-4)


@given(jacobian=well_scaled, c=radii)
@settings(max_examples=60)
def test_agrees_with_torchjd(jacobian, c):
    ours = CAGrad(c, rescale=0)(jacobian)
    theirs = torchjd.aggregation.CAGrad(c=c)(jacobian)
    g_0 = jacobian.mean(dim=0).norm()
    # Their conic solver stops at about 1e-8, of which a nearly flat problem keeps the root.
    assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * g_0.item())
    assert (jacobian @ ours).min() >= (jacobian @ theirs).min() - 1e-6 * g_0 * jacobian.norm()


@given(jacobian=jacobians())
@settings(max_examples=50)
def test_radius_of_one_never_conflicts(jacobian):
    d = CAGrad(c=1.0)(jacobian)
    cosine = (jacobian @ d) / (jacobian.norm(dim=1) * jacobian.mean(dim=0).norm())
    assert (cosine >= -1e-7).all()


def test_no_radius_is_the_mean():
    jacobian = torch.randn(3, 5, dtype=torch.float64)
    assert_close(CAGrad(c=0.0)(jacobian), jacobian.mean(dim=0))


@pytest.mark.parametrize(("rescale", "divisor"), [(0, 1.0), (1, 1.25), (2, 1.5)])
def test_rescale(rescale, divisor):
    jacobian = torch.randn(3, 5, dtype=torch.float64)
    assert_close(CAGrad(0.5, rescale)(jacobian), CAGrad(0.5, 0)(jacobian) / divisor)


def test_pareto_stationary_point_harms_nobody():
    """Opposite gradients of unequal length: only an update along neither harms neither."""
    jacobian = torch.tensor([[1.0, 0.0], [-3.0, 0.0]], dtype=torch.float64)
    assert_close(CAGrad(c=1.5, rescale=0)(jacobian), torch.zeros(2, dtype=torch.float64))
