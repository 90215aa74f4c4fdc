"""SLAW against its two running means, written out."""

import pytest
import torch

from mtl_plugins.weighting import SLAW, build_weighting


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_weights_are_those_of_the_algorithm(beta):
    """The paper's a and b, kept as such."""
    rng = torch.Generator().manual_seed(0)
    steps = torch.rand(12, 3, generator=rng, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1])
    a, b = steps[0].square(), steps[0].clone()
    weighting = SLAW(beta)
    for i, step in enumerate(steps):
        losses = dict(zip("abc", step.tolist(), strict=True))
        weights = weighting.weights(losses, losses)
        weighting.update(losses)
        a, b = beta * a + (1 - beta) * step.square(), beta * b + (1 - beta) * step
        if i == 0:
            assert weights == dict.fromkeys("abc", 1.0)
            continue
        inverse = (a - b.square()).rsqrt()
        assert list(weights.values()) == pytest.approx((3 * inverse / inverse.sum()).tolist())


def test_a_loss_ten_times_as_large_has_a_tenth_of_the_weight():
    weighting = SLAW()
    for loss in (1.0, 2.0, 1.5, 1.2):
        losses = {"small": loss, "large": 10.0 * loss}
        weights = weighting.weights(losses, losses)
        weighting.update(losses)
    assert weights["small"] == pytest.approx(10.0 * weights["large"])
    assert sum(weights.values()) == pytest.approx(2.0)


def test_a_task_that_has_not_varied_has_the_mean_weight():
    weighting = SLAW()
    for loss in (1.0, 2.0):
        weighting.update({"a": loss, "b": 3.0 * loss})
    losses = {"a": 1.0, "b": 1.0, "new": 7.0}
    assert weighting.weights(losses, losses)["new"] == 1.0
    assert sum(weighting.weights(losses, losses).values()) == pytest.approx(3.0)


def test_beta_is_checked():
    with pytest.raises(ValueError, match="weighting: SLAW: beta: expected a number in"):
        build_weighting({"type": "SLAW", "beta": 1.0})
