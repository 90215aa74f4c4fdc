"""Aligned-MTL, IMTL-G, RGW, Sum and Mean: methods with a formula instead of a solver."""

import pytest
import torch
import torchjd.aggregation
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import full_rank, jacobians, seeds, tasks, well_scaled
from torch.testing import assert_close

from mtl_plugins.aggregation import IMTLG, RGW, AlignedMTL, Mean, Sum
from mtl_plugins.gradients import gramian_of


@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
@given(jacobian=well_scaled, factor=st.sampled_from([1e-10, 1.0, 1e10]))
@settings(max_examples=40)
def test_aligned_mtl_agrees_with_torchjd(mode, jacobian, factor):
    preference = torch.ones(len(jacobian), dtype=jacobian.dtype)
    theirs = torchjd.aggregation.AlignedMTL(preference, scale_mode=mode)(jacobian * factor)
    assert_close(AlignedMTL(mode)(jacobian * factor), theirs, rtol=1e-5, atol=1e-6 * factor)


@given(jacobian=full_rank)
@settings(max_examples=40)
def test_aligned_gradients_are_orthogonal_and_equally_long(jacobian):
    aligned = torch.stack(
        [AlignedMTL(preference=row.tolist())(jacobian) for row in torch.eye(len(jacobian))]
    )
    shortest = torch.linalg.svdvals(jacobian)[-1] ** 2
    assert_close(aligned @ aligned.T, shortest * torch.eye(len(jacobian)).double())


def test_aligned_mtl_preference_has_a_number_a_task():
    with pytest.raises(ValueError, match="preference has 2 numbers for 3 tasks"):
        AlignedMTL(preference=[1.0, 2.0]).weights(torch.eye(3))


@given(jacobian=well_scaled)
@settings(max_examples=40)
def test_imtl_g_agrees_with_torchjd(jacobian):
    # On two parallel gradients, where any weights are a solution, it does not take eq. 4's limit.
    assume(len(jacobian) > 2 or torch.linalg.matrix_rank(jacobian) == 2)
    assert_close(IMTLG()(jacobian), torchjd.aggregation.IMTLG()(jacobian), rtol=1e-5, atol=1e-7)


@given(jacobian=jacobians(st.sampled_from(["random", "badly scaled"])))
@settings(max_examples=40)
def test_imtl_g_projects_equally(jacobian):
    d = IMTLG()(jacobian)
    projections = (jacobian / jacobian.norm(dim=1, keepdim=True)) @ d
    assert_close(projections, projections.mean().expand_as(projections), rtol=1e-6, atol=0)
    assert_close(IMTLG().weights(jacobian @ jacobian.T).sum().item(), 1.0)


@given(
    seed=seeds,
    cosine=st.sampled_from([-1.0, -1.0 + 1e-9, -0.99, 0.0, 0.5, 1.0 - 1e-9, 1.0]),
    ratio=st.sampled_from([1e-8, 0.1, 1.0, 1.001, 300.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60)
def test_imtl_g_of_two_tasks_in_closed_form(seed, cosine, ratio, dtype):
    """``w_1 = n_2 / (n_1 + n_2)``, parallel and opposite gradients included."""
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.linalg.qr(torch.randn(6, 2, generator=rng, dtype=torch.float64)).Q.T
    other = ratio * (cosine * a + (1.0 - cosine**2) ** 0.5 * b)
    weights = IMTLG().weights(gramian_of(torch.stack([a, other]).to(dtype)))
    expected = torch.tensor([ratio, 1.0], dtype=torch.float64) / (1.0 + ratio)
    assert_close(weights.double(), expected, rtol=1e-5, atol=0)


@given(
    count=tasks,
    rank=st.integers(1, 6),
    seed=seeds,
    spread=st.sampled_from([0.0, 2.0, 8.0]),
    noise=st.sampled_from([0.0, 1e-9, 1e-4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=150)
def test_imtl_g_is_never_longer_than_the_longest(count, rank, seed, spread, noise, dtype):
    """More tasks than dimensions, nearly dependent ones, norms far apart."""
    rng = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    rows = normal(count, rank) @ normal(rank, 30) + noise * normal(count, 30)
    rows = (rows * 10.0 ** (spread * normal(count, 1))).to(dtype)
    assert IMTLG()(rows).double().norm() <= 1.001 * rows.double().norm(dim=1).max()


@pytest.mark.parametrize("off", [1e-4, 1e-2])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_imtl_g_that_has_no_bounded_solution(off, side):
    """By hand: v = (1, 1, -1) projects to 1 on these unit vectors, of which it is (3, 3, -3).

    With the third of length n, the weights sum to 6 - 3 / n, which is about 12 (n - 1/2).
    """
    unit = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2 / 3, 2 / 3, 1 / 3]]).double()
    norms = torch.tensor([[1.0], [1.0], [0.5 * (1.0 + side * off)]]).double()
    v = torch.tensor([1.0, 1.0, -1.0]).double()
    assert 3**0.5 / abs(6.0 - 3.0 / norms[2].item()) > 20.0  # the length of the exact solution
    assert_close(IMTLG()(unit * norms), side * v / 3**0.5)


@given(count=tasks, seed=seeds)
@settings(max_examples=20)
def test_rgw_is_the_softmax_of_normal_draws(count, seed):
    aggregator = RGW(seed=seed)
    weights = torch.stack([aggregator.weights(torch.eye(count).double()) for _ in range(400)])
    assert_close(weights.sum(dim=1), torch.ones(400).double())
    # Logits are defined up to a constant: differences of independent N(0, 1) have variance 2.
    difference = weights[:, 0].log() - weights[:, 1].log()
    assert abs(difference.mean()) < 5 * (2 / 400) ** 0.5
    assert 1.2 < difference.var() < 3.0


def test_sum_and_mean():
    jacobian = torch.randn(4, 6)
    assert_close(Sum()(jacobian), jacobian.sum(dim=0))
    assert_close(Mean()(jacobian), jacobian.mean(dim=0))
