"""DualProj against the projection as a quadratic program, in closed form and TorchJD's."""

import cvxpy
import torch
import torchjd.aggregation
from hypothesis import given, settings
from strategies import full_rank, jacobians, make_jacobian
from torch.testing import assert_close

from mtl_plugins.aggregation import DualProj, Mean


@given(jacobian=full_rank)
@settings(max_examples=15)
def test_is_the_projection(jacobian):
    mean = jacobian.mean(dim=0).numpy()
    v = cvxpy.Variable(len(mean))
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(v - mean)), [jacobian.numpy() @ v >= 0]).solve(
        solver=cvxpy.CLARABEL
    )
    assert_close(DualProj()(jacobian), torch.tensor(v.value), rtol=1e-5, atol=1e-6)


@given(jacobian=full_rank)
@settings(max_examples=25)
def test_agrees_with_torchjd(jacobian):
    assert_close(
        DualProj()(jacobian), torchjd.aggregation.DualProj()(jacobian), rtol=1e-3, atol=1e-3
    )


@given(jacobian=jacobians())
@settings(max_examples=40)
def test_harms_no_task(jacobian):
    update = DualProj()(jacobian)
    cosines = torch.nn.functional.normalize(jacobian, dim=1) @ update / jacobian.norm(dim=1).max()
    assert cosines.min() > -1e-7


def test_two_tasks_in_closed_form():
    """The short gradient conflicts with the mean: what of the mean is along it goes."""
    long = torch.tensor([-4.0, 2.0, 0.0], dtype=torch.float64)
    short = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    update = DualProj()(torch.stack([long, short]))
    assert_close(update, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))


def test_without_a_conflict_it_is_the_mean():
    jacobian = make_jacobian("rank-deficient", 5, 0)
    assert (jacobian @ jacobian.mean(dim=0)).min() > 0
    assert_close(DualProj()(jacobian), Mean()(jacobian))
