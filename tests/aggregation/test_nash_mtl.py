import pytest
import torch
import torchjd.aggregation
from hypothesis import assume, given, settings
from strategies import full_rank, jacobians, make_jacobian
from torch.testing import assert_close

from mtl_plugins.aggregation import NashMTL


@given(jacobian=jacobians())
@settings(max_examples=150)
def test_bargaining_condition(jacobian):
    gramian = jacobian @ jacobian.T
    alpha = NashMTL(max_norm=0.0).weights(gramian)
    assert (alpha > 0).all()
    assert_close(alpha * (gramian @ alpha), torch.ones_like(alpha), rtol=0, atol=1e-6)


def test_two_tasks_in_closed_form():
    """For T = 2 the update bisects the angle: α_t is inversely proportional to the norm."""
    jacobian = torch.randn(2, 4, dtype=torch.float64) * torch.tensor([[1.0], [7.0]])
    n = jacobian.norm(dim=1)
    cosine = jacobian[0] @ jacobian[1] / n.prod()
    assert_close(
        NashMTL(max_norm=0.0).weights(jacobian @ jacobian.T), 1 / (n * (1 + cosine).sqrt())
    )


@given(jacobian=full_rank)
@settings(max_examples=20)
def test_agrees_with_torchjd(jacobian):
    """Its bargaining is up to a factor, which leaves the direction as it is."""
    theirs = torchjd.aggregation.NashMTL(n_tasks=len(jacobian), max_norm=0.0, optim_niter=100)
    weights = theirs.weighting(jacobian)
    gramian = jacobian @ jacobian.T
    # Its sequence of linearised programs does not always converge; where it did, we agree.
    shares = weights * (gramian @ weights)
    assume((shares / shares.mean() - 1).abs().max() < 1e-2)
    ours, reference = NashMTL(max_norm=0.0)(jacobian), weights @ jacobian
    assert_close(ours / ours.norm(), reference / reference.norm(), rtol=0, atol=1e-2)


def test_norm_is_clipped():
    jacobian = make_jacobian("random", 6, 0)
    free = NashMTL(max_norm=0.0)(jacobian)
    assert_close(free.norm(), torch.tensor(6.0).double().sqrt())
    assert_close(NashMTL(max_norm=0.5)(jacobian), free * 0.5 / free.norm())
    assert_close(NashMTL(max_norm=100.0)(jacobian), free)


def test_update_every_keeps_the_weights():
    gramians = [j @ j.T for j in (make_jacobian("random", 3, seed) for seed in range(5))]
    fresh = [NashMTL(max_norm=0.0).weights(g) for g in gramians]
    kept = NashMTL(max_norm=0.0, update_every=2)
    actual = [kept.weights(g) for g in gramians]
    for i, expected in enumerate([fresh[0], fresh[0], fresh[2], fresh[2], fresh[4]]):
        assert_close(actual[i], expected)
    resumed = NashMTL(max_norm=0.0, update_every=2)
    resumed.load_state_dict(kept.state_dict())
    assert_close(resumed.weights(gramians[0]), fresh[4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pareto_stationary_point_is_bounded(dtype):
    jacobian = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=dtype)
    update = NashMTL()(jacobian)
    assert update.norm() <= 1.0 + 1e-6
    assert update[1] > 0.5  # the task without an opponent is served
