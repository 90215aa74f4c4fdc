import pytest
import torch
from torch.testing import assert_close

from mtl_plugins.weighting import RLW


def test_is_the_softmax_of_normal_numbers():
    rng = torch.Generator().manual_seed(5)
    weighting = RLW(seed=5)
    for tasks in ("abc", "ca", "a", "abcd"):
        z = torch.randn(len(tasks), generator=rng, dtype=torch.float64).exp()
        weights = weighting.weights(tasks)
        assert list(weights) == list(tasks)
        assert_close(torch.tensor(list(weights.values()), dtype=torch.float64), z / z.sum())


def test_no_task_is_preferred():
    weighting, count = RLW(seed=0), 4000
    drawn = [weighting.weights("abc") for _ in range(count)]
    assert len({d["a"] for d in drawn}) == count
    for task in "abc":
        # The standard deviation of one weight is below 1/4.
        assert sum(d[task] for d in drawn) / count == pytest.approx(
            1 / 3, abs=5 * 0.25 / count**0.5
        )


def test_without_a_seed_it_is_that_of_the_run():
    torch.manual_seed(7)
    assert RLW().weights("ab") == RLW(seed=7).weights("ab") != RLW(seed=8).weights("ab")
