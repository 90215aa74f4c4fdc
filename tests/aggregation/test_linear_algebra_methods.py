"""Aligned-MTL, IMTL-G, RGW, Sum and Mean: methods with a formula instead of a solver."""

import pytest
import torch
import torchjd.aggregation
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import full_rank, jacobians, seeds, tasks, well_scaled
from torch.testing import assert_close

from mtl_plugins.aggregation import IMTLG, RGW, AlignedMTL, Mean, Sum


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
    assert_close(IMTLG()(jacobian), torchjd.aggregation.IMTLG()(jacobian), rtol=1e-5, atol=1e-7)


@given(jacobian=jacobians(st.sampled_from(["random", "badly scaled"])))
@settings(max_examples=40)
def test_imtl_g_projects_equally(jacobian):
    d = IMTLG()(jacobian)
    projections = (jacobian / jacobian.norm(dim=1, keepdim=True)) @ d
    assert_close(projections, projections.mean().expand_as(projections), rtol=1e-6, atol=0)
    assert_close(IMTLG().weights(jacobian @ jacobian.T).sum().item(), 1.0)


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
