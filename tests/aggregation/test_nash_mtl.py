import pytest
import torch
import torchjd.aggregation
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import full_rank, jacobians, make_jacobian, seeds
from torch.testing import assert_close

from mtl_plugins.aggregation import MCLGS, NashMTL
from mtl_plugins.aggregation.bargaining import nash_bargaining
from mtl_plugins.aggregation.solvers import NotConverged

stationary = st.builds(
    lambda shape, seed, spread: (
        torch.randn(*shape, generator=(rng := torch.Generator().manual_seed(seed))).double()
        * 10.0 ** (spread * torch.randn(shape[0], 1, generator=rng).double())
    ),
    st.sampled_from([(20, 1), (20, 5), (16, 8), (3, 1), (7, 2), (40, 3)]),
    seeds,
    st.sampled_from([0.0, 3.0]),
)


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


@given(jacobian=stationary, dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=60)
def test_stationary_points_converge(jacobian, dtype):
    """More tasks than dimensions: a convex combination of the gradients vanishes, or nearly."""
    aggregator = NashMTL()
    update = aggregator(jacobian.to(dtype))
    assert aggregator.fallbacks == 0
    assert update.norm() <= 1.01
    # No task is made worse by more than rounding.
    assert (torch.nn.functional.normalize(jacobian, dim=1) @ update.double()).min() > -0.02


@given(jacobian=stationary, seed=seeds)
@settings(max_examples=40)
def test_permuting_the_tasks_permutes_the_weights(jacobian, seed):
    gramian = jacobian @ jacobian.T
    order = torch.randperm(len(gramian), generator=torch.Generator().manual_seed(seed))
    weights = NashMTL(max_norm=0.0).weights(gramian)
    permuted = NashMTL(max_norm=0.0).weights(gramian[order][:, order])
    assert_close(permuted, weights[order], rtol=1e-3, atol=0)


@pytest.mark.parametrize(("plus", "minus"), [(1, 1), (3, 2), (19, 1), (13, 7)])
def test_opposite_gradients_in_closed_form(plus, minus):
    """p times g and m times -g: their weights cancel, p a = m b, and x (A x) = 1 sums to T.

    With ρ = 1e-10 on the diagonal, ρ (p a² + m b²) = T but for the square of an update of √ρ.
    """
    rows = torch.tensor([[1.0]] * plus + [[-1.0]] * minus, dtype=torch.float64)
    weights = NashMTL(max_norm=0.0).weights(rows @ rows.T)
    a = ((plus + minus) / (1e-10 * (plus + plus**2 / minus))) ** 0.5
    expected = torch.tensor([a] * plus + [a * plus / minus] * minus, dtype=torch.float64)
    assert_close(weights, expected, rtol=1e-4, atol=0)


@given(jacobian=stationary)
@settings(max_examples=40)
def test_solver_on_a_matrix_that_is_almost_singular(jacobian):
    unit = torch.nn.functional.normalize(jacobian, dim=1)
    a = unit @ unit.T + 1e-10 * torch.eye(len(unit))
    x = torch.tensor(nash_bargaining(a.tolist()), dtype=torch.float64)
    assert (x > 0).all()
    # 16 digits of A, and entries of x up to 1e5 that cancel in A x.
    assert_close(x * (a @ x), torch.ones_like(x), rtol=0, atol=2e-2)


@pytest.mark.parametrize("aggregator", [NashMTL(), MCLGS(a0=0.0, total_steps=1, base="NashMTL")])
def test_fallback_is_clipped(aggregator, monkeypatch):
    def fail(self, gramian, eps):
        raise NotConverged("by the test")

    monkeypatch.setattr(NashMTL, "_bargain", fail)
    rows = 1e5 * torch.eye(4, dtype=torch.float64)
    update = aggregator(rows)
    assert aggregator.fallbacks == 1
    assert_close(update, torch.full((4,), 0.5).double())  # the mean, at the length of max_norm
