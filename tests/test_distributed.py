"""The averages over ranks, in two real processes over gloo and in one, against plain arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.testing import assert_close
from two_processes import results_of_two, work

from mtl_plugins.distributed import (
    average,
    average_grads,
    average_some,
    from_first_rank,
    gather,
    with_grad,
    world_size,
)

CPU = torch.device("cpu")
# The gradients of five parameters on each rank: of both, of one, of the other, of none, of both.
HAVE = [(True, True), (True, False), (False, True), (False, False), (True, True)]
SHAPES = [(2, 3), (4,), (), (2,), (1, 2, 2)]
DTYPES = [torch.float32, torch.float64]


def values(rank: int, dtype: torch.dtype) -> list[Tensor]:
    rng = torch.Generator().manual_seed(rank)
    return [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in SHAPES]


def had(rank: int, dtype: torch.dtype) -> list[Tensor | None]:
    """The tensors of a rank, without those that it does not have."""
    return [v if have[rank] else None for v, have in zip(values(rank, dtype), HAVE, strict=True)]


def mean_of(dtype: torch.dtype) -> list[Tensor | None]:
    """By hand: zero stands for what one rank lacks; None where both do."""
    means = []
    for first, second in zip(had(0, dtype), had(1, dtype), strict=True):
        parts = [t for t in (first, second) if t is not None]
        means.append(sum(parts) / 2 if parts else None)
    return means


def parameters(rank: int, dtype: torch.dtype) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    for p, grad in zip(params, had(rank, dtype), strict=True):
        p.grad = grad
    return params


def find(rank: int) -> dict[Any, Any]:
    found: dict[Any, Any] = {"size": world_size()}
    found["first"] = from_first_rank(10 + rank), from_first_rank(2**62 + rank)
    found["gather"] = gather([rank, 5, 7 - rank], CPU), gather([], CPU)
    for dtype in DTYPES:
        mine = values(rank, dtype)[0]
        averaged = average(mine)
        found["average", dtype] = averaged, averaged is mine
        params = parameters(rank, dtype)
        shared = with_grad(params)
        found["with_grad", dtype] = [any(p is q for q in shared) for p in params]
        average_grads(shared)
        found["grads", dtype] = [p.grad for p in params]
        found["some", dtype] = average_some(had(rank, dtype), params)
    found["nothing"] = average_some([], []), with_grad([]), average_some([None], [torch.ones(2)])
    average_grads([])
    # Had one rank taken part in one operation more, the next would have met the wrong one.
    found["in step"] = from_first_rank(rank + 1)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return results_of_two(__file__, tmp_path_factory.mktemp("two") / "found")


def test_number_of_ranks_and_value_of_the_first(found):
    for rank in found:
        assert rank["size"] == 2
        assert rank["first"] == (10, 2**62)
        assert rank["in step"] == 1


def test_gather_has_the_ranks_in_their_order(found):
    for rank in found:
        assert rank["gather"] == ([(0, 1), (5, 5), (7, 6)], [])


@pytest.mark.parametrize("dtype", DTYPES)
def test_average_in_place(dtype, found):
    expected = (values(0, dtype)[0] + values(1, dtype)[0]) / 2
    for rank in found:
        mean, in_place = rank["average", dtype]
        assert in_place
        assert_close(mean, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_that_some_rank_has(dtype, found):
    for rank in found:
        assert rank["with_grad", dtype] == [True, True, True, False, True]
        for mean, expected in zip(rank["grads", dtype], mean_of(dtype), strict=True):
            assert_close(mean, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_some_tensors(dtype, found):
    for rank in found:
        for mean, expected in zip(rank["some", dtype], mean_of(dtype), strict=True):
            assert_close(mean, expected)


def test_nothing_to_average(found):
    assert [rank["nothing"] for rank in found] == [([], [], [None])] * 2


def test_one_process_changes_nothing():
    assert not distributed.is_initialized()
    assert world_size() == 1
    assert from_first_rank(3) == 3
    assert gather([4, 5], CPU) == [(4,), (5,)]
    tensor = torch.tensor([1.0, 2.0])
    assert average(tensor) is tensor
    assert tensor.tolist() == [1.0, 2.0]
    params = parameters(0, torch.float32)
    assert [any(p is q for q in with_grad(params)) for p in params] == [h[0] for h in HAVE]
    average_grads(params)
    assert [p.grad is not None for p in params] == [h[0] for h in HAVE]
    for p, expected in zip(params, had(0, torch.float32), strict=True):
        assert_close(p.grad, expected)
    some = had(0, torch.float32)
    assert average_some(some, params) == some


if __name__ == "__main__":
    work(find)
