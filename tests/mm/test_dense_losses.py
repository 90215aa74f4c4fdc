"""Losses of dense prediction against sums written out, and where no pixel has a label."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from mtl_plugins.mm.models import BalancedBCELoss, DepthL1Loss, NormalLoss

SEEDS = st.integers(0, 2**31 - 1)


def _maps(seed: int, channels: int) -> tuple[torch.Tensor, np.ndarray, torch.Generator]:
    rng = torch.Generator().manual_seed(seed)
    pred = torch.randn(2, channels, 4, 5, generator=rng)
    return pred, pred.double().numpy(), rng


@given(SEEDS)
def test_depth_is_the_mean_over_known_pixels(seed: int) -> None:
    pred, numbers, rng = _maps(seed, 1)
    target = torch.rand(2, 1, 4, 5, generator=rng) * (torch.rand(2, 1, 4, 5, generator=rng) > 0.4)
    errors = [
        abs(p - t) for p, t in zip(numbers.flat, target.double().numpy().flat, strict=True) if t > 0
    ]
    want = sum(errors) / max(len(errors), 1)
    assert_close(DepthL1Loss(loss_weight=2.0)(pred, target).item(), 2 * want, rtol=1e-5, atol=1e-6)


@given(SEEDS)
def test_normals_by_angle_and_by_element(seed: int) -> None:
    pred, numbers, rng = _maps(seed, 3)
    target = F.normalize(torch.randn(2, 3, 4, 5, generator=rng), dim=1)
    target *= torch.rand(2, 1, 4, 5, generator=rng) > 0.4
    cosines, differences = [], []
    for n, y, x in np.ndindex(2, 4, 5):
        p, t = numbers[n, :, y, x], target[n, :, y, x].double().numpy()
        if np.any(t):
            unit = p / math.sqrt(p @ p)
            cosines.append(1 - unit @ t)
            differences += list(abs(unit - t))
    assert_close(NormalLoss()(pred, target).item(), np.mean(cosines), rtol=1e-4, atol=1e-5)
    assert_close(NormalLoss("l1")(pred, target).item(), np.mean(differences), rtol=1e-4, atol=1e-5)
    assert_close(NormalLoss()(pred * 7, target), NormalLoss()(pred, target))


@given(SEEDS, st.sampled_from([0.95, 0.3, "batch"]))
def test_edges_weigh_positive_and_negative_pixels(seed: int, weight: float | str) -> None:
    pred, numbers, rng = _maps(seed, 1)
    target = torch.tensor([0, 1, 255])[torch.randint(3, (2, 4, 5), generator=rng)]
    pairs = [(p, t) for p, t in zip(numbers.flat, target.numpy().flat, strict=True) if t != 255]
    w = sum(t == 0 for _, t in pairs) / len(pairs) if weight == "batch" else weight
    terms = [
        w * math.log1p(math.exp(-p)) if t else (1 - w) * math.log1p(math.exp(p)) for p, t in pairs
    ]
    loss = BalancedBCELoss(weight)(pred, target)
    assert_close(loss.item(), sum(terms) / len(pairs), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "channels", "unknown"),
    [
        (DepthL1Loss(), 1, 0.0),
        (NormalLoss(), 3, 0.0),
        (NormalLoss("l1"), 3, 0.0),
        (BalancedBCELoss(), 1, 255.0),
        (BalancedBCELoss("batch"), 1, 255.0),
    ],
)
def test_no_known_pixel_is_zero_with_a_graph(loss, channels: int, unknown: float) -> None:
    pred = torch.randn(1, channels, 2, 2, requires_grad=True)
    value = loss(pred, torch.full((1, channels, 2, 2), unknown))
    value.backward()
    assert value.item() == 0
    assert pred.grad is not None and not pred.grad.any()


def test_an_infinite_prediction_harms_only_known_pixels() -> None:
    pred = torch.tensor([[[[math.inf, 2.0]]]], requires_grad=True)
    value = DepthL1Loss()(pred, torch.tensor([[[[0.0, 5.0]]]]))
    value.backward()
    assert value.item() == 3
    assert pred.grad is not None and pred.grad.flatten().tolist() == [0, -1]


@pytest.mark.parametrize("make", [lambda: NormalLoss("cos"), lambda: BalancedBCELoss("each")])
def test_unknown_options_are_refused(make) -> None:
    with pytest.raises(ValueError, match=r"loss\.(mode|pos_weight).*(cosine|batch)"):
        make()
