"""The two objectives, by hand, and what is known of two methods on them."""

import math
from pathlib import Path

import pytest
import torch
from analysis.two_objectives import (
    PARETO_X1,
    PARETO_X2,
    STARTS,
    Objectives,
    descend,
    draw,
    is_optimal,
    objective,
    usable,
)
from hypothesis import assume, given
from hypothesis import strategies as st

from mtl_plugins.aggregation import AGGREGATORS
from mtl_plugins.weighting import WEIGHTINGS

HIGH = (STARTS[0], STARTS[2])
x1s = st.floats(-10, 10)
x2s = st.floats(-10, 10)


def test_values_by_hand():
    # At (-3, 10), tanh x2 = 1: the first logarithm is that of |4 / 2 - 1| = 1, the second that of
    # |-10 / 2 + 1| = 4.
    assert objective(-3.0, 10.0, 1)[0] == pytest.approx(6 * math.tanh(5))
    assert objective(-3.0, 10.0, -1)[0] == pytest.approx((math.log(4) + 6) * math.tanh(5))
    # The middle of a valley is a floor.
    value, by_x1, by_x2 = objective(-5.0, 40.0, 1)
    assert value == pytest.approx(math.log(5e-6) + 6)
    assert by_x1 == 0.0 == pytest.approx(by_x2)
    # The bottom of a bowl, seen from both.
    assert objective(7.0, -8.0, 1)[0] == pytest.approx(-20 * math.tanh(4))
    assert objective(7.0, -8.0, -1)[0] == pytest.approx((14**2 / 10 - 20) * math.tanh(4))


def test_both_fall_alike_from_the_origin():
    for side in (1, -1):
        assert objective(0.0, 0.0, side) == pytest.approx((0.0, 0.0, (20 - 5.54) / 2))


@given(x1s, x2s, st.sampled_from([1, -1]))
def test_derivatives(x1: float, x2: float, side: int):
    h = 1e-6
    distance = (x1 + 7 * side) / 2 - side * math.tanh(x2)
    assume(abs(x2) > 0.01 and abs(distance) > 0.01)  # no kink
    _, by_x1, by_x2 = objective(x1, x2, side)
    around = [objective(x1 + a, x2 + b, side)[0] for a, b in ((h, 0), (-h, 0), (0, h), (0, -h))]
    assert (around[0] - around[1]) / (2 * h) == pytest.approx(by_x1, rel=1e-4, abs=1e-6)
    assert (around[2] - around[3]) / (2 * h) == pytest.approx(by_x2, rel=1e-4, abs=1e-6)


@given(x1s, x2s)
def test_mirror_image(x1: float, x2: float):
    value, by_x1, by_x2 = objective(x1, x2, 1)
    assert objective(-x1, x2, -1) == pytest.approx((value, -by_x1, by_x2))


def test_backward_of_each():
    x = torch.tensor([[1.5, -2.5]], dtype=torch.float64, requires_grad=True)
    for loss, side in zip(Objectives.apply(x), (1, -1), strict=True):
        value, *slope = objective(1.5, -2.5, side)
        (grad,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert [loss.item(), *grad[0].tolist()] == pytest.approx([value, *slope])


@given(st.floats(-PARETO_X1, PARETO_X1))
def test_pareto_set(x1: float):
    """There a mean of the gradients vanishes: not of their length, which is up to 2.8."""
    _, *first = objective(x1, PARETO_X2, 1)
    _, *second = objective(x1, PARETO_X2, -1)
    share = (7 + x1) / 14
    mean = [share * a + (1 - share) * b for a, b in zip(first, second, strict=True)]
    assert math.hypot(*mean) < 2e-3
    assert is_optimal((x1, PARETO_X2))


def test_not_optimal():
    for point in ((7.2, PARETO_X2), (0.0, -8.0), (-5.0, 2.7), *STARTS):
        assert not is_optimal(point)


def test_sum_gets_stuck():
    for start, side in zip(HIGH, (-1, 1), strict=True):
        path = descend("Sum", start, steps=2000, lr=5e-3)
        x1, x2 = path[-1]
        assert x1 == pytest.approx(5 * side, abs=0.3) and x2 > 1.0
        assert path[0].tolist() == list(start)


def test_nash_mtl_reaches_the_pareto_set(tmp_path: Path):
    paths = [descend("NashMTL", start, steps=700, lr=2e-2) for start in HIGH]
    assert all(is_optimal(path[-1]) for path in paths)
    draw({"NashMTL": paths}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


# Methods that need more than a backward pass.
@pytest.mark.parametrize("method", ["FAMO", "GradNorm", "DTP", "Achievement"])
def test_a_weighting_learns(method: str):
    path = descend(method, STARTS[3], steps=150, lr=0.1)
    assert path[-1][1] < -4.0


def test_all_methods_run_or_say_why_not(capsys: pytest.CaptureFixture[str]):
    methods = usable([*AGGREGATORS, *WEIGHTINGS])
    said = capsys.readouterr().out
    left_out = {line.split(" left out")[0] for line in said.splitlines() if " left out" in line}
    assert left_out | set(methods) == {*AGGREGATORS, *WEIGHTINGS}
    assert left_out == {"ConnectionStrength", "RotoGrad", "TorchJD", "Fixed"}
