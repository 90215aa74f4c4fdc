"""UPGrad against TorchJD, and against the definition of the projection."""

import torch
import torchjd.aggregation
from hypothesis import given, settings
from strategies import jacobians, well_scaled
from torch.testing import assert_close
from torchjd.linalg import QuadprogProjector

from mtl_plugins.aggregation import UPGrad


@given(jacobian=well_scaled)
@settings(max_examples=40)
def test_agrees_with_torchjd(jacobian):
    """Theirs adds 1e-4 of the trace to the diagonal, if it is not told to add less."""
    projector = QuadprogProjector(norm_eps=1e-12, reg_eps=1e-9)
    theirs = torchjd.aggregation.UPGrad(projector=projector)(jacobian)
    scale = jacobian.norm(dim=1).max().item()
    assert_close(UPGrad()(jacobian), theirs, rtol=1e-5, atol=1e-5 * scale)


@given(jacobian=jacobians())
@settings(max_examples=40)
def test_harms_no_task(jacobian):
    update = UPGrad()(jacobian)
    lengths = jacobian.norm(dim=1)
    assert ((jacobian / lengths[:, None]) @ update >= -1e-6 * lengths.max()).all()


def test_two_opposed_tasks():
    """Each loses what works against the other, by hand."""
    jacobian = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    first = torch.tensor([0.5, 0.5])  # (1, 0) without its part along (-1, 1)
    second = torch.tensor([0.0, 1.0])  # (-1, 1) without its part along (1, 0)
    assert_close(UPGrad()(jacobian), (first + second).double() / 2)


def test_without_conflict_it_is_the_mean():
    jacobian = torch.tensor([[1.0, 0.0], [1.0, 3.0], [0.0, 2.0]], dtype=torch.float64)
    assert_close(UPGrad()(jacobian), jacobian.mean(dim=0))
