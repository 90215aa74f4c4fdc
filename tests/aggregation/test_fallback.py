"""What a Gramian aggregator does when its solver does not converge."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtl_plugins.aggregation import AlignedMTL, NashMTL, nash_mtl
from mtl_plugins.aggregation.bargaining import nash_bargaining
from mtl_plugins.aggregation.solvers import NotConverged


def test_bound_on_the_newton_steps():
    """Far from the solution after one."""
    with pytest.raises(NotConverged, match="1 steps"):
        nash_bargaining([[1.0, 0.9], [0.9, 100.0]], steps=1)


@pytest.mark.parametrize(("method", "weight"), [(NashMTL, 1 / 3), (AlignedMTL, 1.0)])
def test_falls_back_to_the_plain_sum_or_mean_and_counts(method, weight, monkeypatch, caplog):
    aggregator = method()
    gramian = torch.eye(3)
    usual = aggregator.weights(gramian)
    assert aggregator.fallbacks == 0
    with monkeypatch.context() as patch:
        patch.setattr(method, "solve", lambda *args, **kwargs: nash_bargaining([[1.0]], steps=0))
        for count in (1, 2):
            assert_close(aggregator.weights(gramian), torch.full((3,), weight))
            assert aggregator.fallbacks == count
    assert "takes the plain" in caplog.text
    assert_close(aggregator.weights(gramian), usual)


def test_nash_mtl_finds_out(monkeypatch):
    """Through its own code: the bound of the real solver is set to nothing."""
    real = nash_mtl.nash_bargaining
    monkeypatch.setattr(nash_mtl, "nash_bargaining", lambda a: real(a, steps=0))
    aggregator = NashMTL()
    assert_close(aggregator.weights(torch.eye(2)), torch.full((2,), 0.5))
    assert aggregator.fallbacks == 1
