"""MCLGS against equation 4 of the paper, written out."""

import math

import pytest
import torch
from hypothesis import given
from strategies import jacobians, make_jacobian
from torch.testing import assert_close

from mtl_plugins.aggregation import MCLGS, build_aggregator


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def test_two_tasks_by_hand():
    a, b = torch.tensor([[2.0, 0.0, 1.0], [-1.0, 3.0, 0.0]], dtype=torch.float64)
    aggregator = MCLGS(a0=4.0, r_t=1.0, total_steps=4)
    for t in range(6):
        p = max(4.0 - t * 1.0, 0.0)
        w = math.tanh(cosine(a, b) * p) + 1.0
        assert_close(aggregator(torch.stack([a, b])), w * (a + b) / 2.0)


def test_three_tasks_by_hand():
    g0, g1, g2 = make_jacobian("conflicting", 3, seed=1)
    aggregator = MCLGS(a0=3.0, pacing="exponential", r_a=0.5)
    for t in range(4):
        p = 3.0 * 0.5**t
        w01, w02, w12 = (
            math.tanh(cosine(x, y) * p) + 1.0 for x, y in ((g0, g1), (g0, g2), (g1, g2))
        )
        expected = (w01 * (g0 + g1) + w02 * (g0 + g2) + w12 * (g1 + g2)) / 6.0
        assert_close(aggregator(torch.stack([g0, g1, g2])), expected)
        assert_close(
            torch.tensor(aggregator.own_factors),
            torch.tensor([w01 + w02, w01 + w12, w02 + w12]) / 6.0,
        )


@given(jacobian=jacobians())
def test_without_a_curriculum_it_is_the_mean(jacobian):
    aggregator = MCLGS(a0=0.0, total_steps=1)
    assert_close(aggregator(jacobian), build_aggregator("Mean")(jacobian))
    assert_close(
        torch.tensor(aggregator.own_factors), torch.full((len(jacobian),), 1 / len(jacobian))
    )


def test_base_gets_scaled_rows():
    """A's CAGrad + MCLGS."""
    jacobian = make_jacobian("conflicting", 3, seed=2)
    unit = torch.nn.functional.normalize(jacobian, dim=1)
    w = torch.tanh(unit @ unit.T * 5.0) + 1.0
    alpha = (w.sum(dim=1) - w.diagonal()) / 6.0
    scaled = 3.0 * alpha[:, None] * jacobian
    composed = MCLGS(a0=5.0, total_steps=10, base={"type": "CAGrad", "c": 0.5})
    assert_close(composed(jacobian), build_aggregator({"type": "CAGrad", "c": 0.5})(scaled))
    assert_close(torch.tensor(composed.own_factors, dtype=torch.float64), 3.0 * alpha)


def test_scale_is_that_of_the_base():
    assert MCLGS().scale == "mean" and MCLGS(base="PCGrad").scale == "sum"


def test_state_continues_the_pacing_and_the_base():
    jacobians = [make_jacobian("conflicting", 4, seed) for seed in range(4)]
    options = dict(a0=6.0, total_steps=4, base={"type": "PCGrad", "seed": 1})
    straight = MCLGS(**options)
    expected = [straight(j) for j in jacobians]
    first, second = MCLGS(**options), MCLGS(**options)
    for j in jacobians[:2]:
        first(j)
    second.load_state_dict(first.state_dict())
    for j, update in zip(jacobians[2:], expected[2:], strict=True):
        assert torch.equal(second(j), update)


def test_length_of_the_run_is_needed():
    with pytest.raises(ValueError, match="MCLGS with pacing='linear' needs to know how many steps"):
        MCLGS()(torch.eye(2))


@pytest.mark.parametrize(
    "options",
    [{"a0": -1.0}, {"r_t": 0.0}, {"r_a": 2.0}, {"pacing": "cosine"}, {"base": "GradDrop"}],
)
def test_invalid_options(options):
    with pytest.raises(ValueError, match=f"aggregator: MCLGS: .*{next(iter(options))}"):
        build_aggregator({"type": "MCLGS", **options})
