import torch
import torchjd.aggregation
from hypothesis import given, settings
from strategies import jacobians, seeds
from torch.testing import assert_close

from mtl_plugins.aggregation import PCGrad


def project(jacobian, orders):
    """Algorithm 1 of the paper on the gradients themselves."""
    total = torch.zeros_like(jacobian[0])
    for i, order in enumerate(orders):
        v = jacobian[i].clone()
        for j in order:
            g = jacobian[j]
            if v @ g < 0:
                v -= (v @ g) / (g @ g) * g
        total += v
    return total


@given(jacobian=jacobians(), seed=seeds)
@settings(max_examples=60)
def test_agrees_with_projections(jacobian, seed):
    actual = PCGrad(seed=seed)(jacobian)
    expected = project(jacobian, PCGrad(seed=seed).orders(len(jacobian)))
    assert_close(actual, expected, rtol=1e-6, atol=1e-9 * jacobian.abs().max().item())


@given(seed=seeds)
@settings(max_examples=30)
def test_agrees_with_torchjd_where_there_is_one_order(seed):
    torch.manual_seed(seed)
    jacobian = torch.randn(2, 3, dtype=torch.float64)
    assert_close(PCGrad()(jacobian), torchjd.aggregation.PCGrad()(jacobian))


@given(seed=seeds)
@settings(max_examples=30)
def test_two_tasks_never_conflict(seed):
    torch.manual_seed(seed)
    jacobian = torch.randn(2, 3, dtype=torch.float64)
    assert (jacobian @ PCGrad()(jacobian) >= -1e-12).all()


def test_orders_are_permutations_of_the_others():
    orders = PCGrad(seed=3).orders(6)
    assert [sorted(order) for order in orders] == [
        [j for j in range(6) if j != i] for i in range(6)
    ]
    assert len({tuple(order) for order in orders}) > 1


def test_seed_follows_the_run():
    torch.manual_seed(5)
    first = PCGrad().orders(8)
    torch.manual_seed(5)
    assert PCGrad().orders(8) == first
    torch.manual_seed(6)
    assert PCGrad().orders(8) != first
