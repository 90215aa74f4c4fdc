"""The buffer of task gradients, and the Gramian."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from mtl_plugins.gradients import TaskRows, apart, combine, grads_set_aside, gramian_of, rows_of

CPU = torch.device("cpu")


def leaves() -> list[nn.Parameter]:
    torch.manual_seed(0)
    conv = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    return [nn.Parameter(torch.randn(2, 3)), nn.Parameter(conv), nn.Parameter(torch.randn(5))]


def losses_of(params: list[nn.Parameter]) -> list[torch.Tensor]:
    a, b, c = params
    return [a.exp().sum() + b.square().sum(), (b * b.flip(0)).sum(), a.sum() * c.prod()]


def filled(params: list[nn.Parameter]) -> TaskRows:
    rows = TaskRows(params, 3, CPU)
    rows.fill(list(enumerate(losses_of(params))), lambda row: None)
    return rows


def test_rows_are_the_gradients_of_autograd():
    params = leaves()
    before = [torch.ones_like(p) for p in params]
    for p, grad in zip(params, before, strict=True):
        p.grad = grad
    rows = filled(params)
    for t, loss in enumerate(losses_of(params)):
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        for view, grad, p in zip(rows.views[t], grads, params, strict=True):
            assert_close(view, torch.zeros_like(p) if grad is None else grad)
            assert view.stride() == p.stride()
    assert all(p.grad is grad for p, grad in zip(params, before, strict=True))


def test_rows_of_a_loss_that_is_absent_are_zero():
    params = leaves()
    a, b, _ = losses_of(params)
    rows = rows_of([a, None, b], params)
    assert not rows[1].any()
    expected = torch.autograd.grad(b, params, allow_unused=True)
    parts = rows[2].split([p.numel() for p in params])
    for part, grad, p in zip(parts, expected, params, strict=True):
        assert_close(part.view_as(p), torch.zeros_like(p) if grad is None else grad)


def test_parts_are_the_first_leaves_and_the_others():
    rows = filled(leaves())
    first, others = rows.parted(2)
    assert (first.matrix().shape, others.matrix().shape) == ((3, 6 + 48), (3, 5))
    assert_close(torch.cat([first.matrix(), others.matrix()], dim=1), rows.matrix())


def test_matrix_is_the_rows_and_what_is_written_to_it_arrives_there():
    rows = filled(leaves())
    expected = [[grad.clone() for grad in row] for row in rows.views]
    for row, grads in zip(rows.matrix(), expected, strict=True):
        for view, grad in zip(rows.split(row), grads, strict=True):
            assert_close(view, grad)
    assert_close(torch.cat([*rows.by_leaf()], dim=1).sum(dim=1), rows.matrix().sum(dim=1))
    rows.matrix().mul_(2.0)
    for views, grads in zip(rows.views, expected, strict=True):
        for view, grad in zip(views, grads, strict=True):
            assert_close(view, 2.0 * grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("joined", [False, True])
def test_gramian_and_sum_with_and_without_the_matrix(joined, dtype):
    """One leaf is reached by one task, one by none, and one has another memory format."""
    params = [nn.Parameter(p.to(dtype)) for p in [*leaves(), torch.ones(4)]]
    rows = TaskRows(params, 3, CPU)
    rows.fill(list(enumerate(losses_of(params[:3]))), lambda row: None)
    exact = torch.stack([torch.cat([g.double().flatten() for g in row]) for row in rows.views])
    if joined:
        assert rows.matrix().dtype == dtype
    near = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    near_in_single = {"rtol": 1e-5, "atol": 1e-5}
    assert_close(rows.gramian().double(), exact @ exact.T, **near_in_single)
    weights = [0.5, -2.0, 3.0]
    expected = torch.tensor(weights, dtype=torch.float64) @ exact
    found = rows.combined(weights)
    for p, grad in zip(params, found, strict=True):
        assert (grad.dtype, grad.shape, grad.stride()) == (p.dtype, p.shape, p.stride())
    assert_close(torch.cat([g.double().flatten() for g in found]), expected, **near)


def test_gramian_of_leaves_longer_and_shorter_than_a_slice():
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(n)) for n in (70_000, 3, 65_536, 140_000, 1)]
    scales = [torch.randn(p.shape) for p in params]
    losses = [
        sum((p * s).sum() for p, s in zip(params, scales, strict=True)),
        sum(p.square().sum() for p in params[1:]),
    ]
    rows = TaskRows(params, 2, CPU)
    rows.fill(list(enumerate(losses)), lambda row: None)
    loose = rows.gramian()
    exact = rows.matrix().double()
    assert_close(loose.double(), exact @ exact.T, rtol=1e-5, atol=1e-2)


def test_gradients_of_micro_batches_add_up():
    params = leaves()
    once, twice = filled(params), filled(params)
    twice.fill(list(enumerate(losses_of(params))), lambda row: None)
    for row, rows in zip(once.views, twice.views, strict=True):
        for grad, added in zip(row, rows, strict=True):
            assert_close(2.0 * grad, added)


def test_gradient_that_two_leaves_get_in_one_tensor():
    """The gradient of a sum is one tensor for both terms, and is scaled in place later on."""
    a, b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    rows = TaskRows([a, b], 2, CPU)
    grads = torch.tensor([1.0, 2.0, 3.0])
    rows.fill([(0, ((a + b) * grads).sum()), (1, (a + b).sum())], lambda row: None)
    found = rows.combined([3.0, 1.0])
    assert found[0].tolist() == found[1].tolist() == [4.0, 7.0, 10.0]


def test_sparse_gradient():
    table = nn.Embedding(5, 2, sparse=True)
    rows = TaskRows([table.weight], 2, CPU)
    picked = torch.tensor([1, 3, 3])
    rows.fill([(0, table(picked).sum()), (1, table(picked[:1]).sum())], lambda row: None)
    assert rows.gramian().tolist() == [[10.0, 2.0], [2.0, 2.0]]
    assert rows.combined([1.0, 10.0])[0].tolist() == [[0, 0], [11, 11], [0, 0], [2, 2], [0, 0]]


def test_rows_taken_from_another_layout():
    """One leaf moves, one goes, and a task joins."""
    params = leaves()
    old, new = filled(params), TaskRows([params[2], params[0]], 4, CPU)
    new.take(old)
    for t in range(3):
        assert_close(new.views[t][0], old.views[t][2])
        assert_close(new.views[t][1], old.views[t][0])
    assert not new.matrix()[3].any()


def test_row_is_announced_before_its_loss_runs_back():
    params, seen, order = leaves(), [], []
    params[1].register_hook(lambda grad: seen.append(list(order)))
    rows = TaskRows(params, 3, CPU)
    rows.fill(list(enumerate(losses_of(params)))[:2], order.append)
    assert seen == [[0], [0, 1]]


def test_grads_are_set_aside():
    params = leaves()
    params[0].grad = torch.ones_like(params[0])
    with pytest.raises(ZeroDivisionError), grads_set_aside(params):
        assert params[0].grad is None
        params[1].grad = torch.ones_like(params[1])
        raise ZeroDivisionError
    assert params[0].grad.sum() == 6.0 and params[1].grad is None


@given(
    st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 40) | st.sampled_from([65536, 70000])
)
def test_gramian_and_combination(seed, tasks, width):
    rows = torch.randn(tasks, width, generator=torch.Generator().manual_seed(seed))
    weights = torch.linspace(-1.0, 2.0, tasks)
    exact = rows.double()
    assert_close(gramian_of(rows).double(), exact @ exact.T, rtol=1e-4, atol=1e-5 * width)
    update = sum(w * row for w, row in zip(weights.double(), exact, strict=True))
    assert_close(combine(weights, rows).double(), update, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_single(dtype):
    """4096 ones: half precision cannot count to that, nor hold 70000."""
    rows = torch.full((2, 4097), 4.0, dtype=dtype)
    assert gramian_of(rows)[0, 1] == 16.0 * 4097
    many = torch.ones(4097, 3, dtype=dtype)
    assert combine(torch.ones(4097), many)[0] == torch.tensor(4097.0).to(dtype)


def test_gramian_beyond_single_precision():
    rows = torch.tensor([[1e25, 0.0], [1e25, 1e25]])
    expected = torch.tensor([[1e50, 1e50], [1e50, 2e50]], dtype=torch.float64)
    assert_close(gramian_of(rows), expected, rtol=1e-6, atol=0)
    assert gramian_of(torch.tensor([[torch.inf, 0.0]])).isinf().all()


def test_gradients_that_share_memory_are_taken_apart():
    """Of two leaves that are reshaped and added, a pass gives views of one tensor."""
    a, b = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    slope = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def turns() -> list[tuple[int, torch.Tensor]]:
        total = a.view(4) + b.view(4)
        return [(0, (total * slope).sum()), (1, total.sum())]

    (a.view(4) + b.view(4)).mul(slope).sum().backward()
    assert a.grad.data_ptr() == b.grad.data_ptr()  # as PyTorch does it, which this is about
    for calls in (1, 2):
        rows = TaskRows([a, b], 2, CPU)
        for _ in range(calls):
            rows.fill(turns(), lambda row: None)
        assert rows.gramian().tolist() == [
            [n * 2 * calls**2 for n in row] for row in ((30, 10), (10, 4))
        ]
        for found in rows.combined([3.0, 1.0]):
            assert found.flatten().tolist() == [calls * n for n in (4.0, 7.0, 10.0, 13.0)]


def test_only_what_overlaps_is_copied():
    whole = torch.arange(12.0)
    parts = [whole[:4], None, whole[4:8], whole[6:10], whole[10:].view(1, 2), whole[:0]]
    found = apart(parts)
    for grad, part in zip(found, parts, strict=True):
        assert part is None if grad is None else torch.equal(grad, part)
    assert [grad is part for grad, part in zip(found, parts, strict=True)] == [
        *(True, True, True, False, True, True)
    ]


def test_sparse_gradient_in_a_row():
    table = nn.Embedding(5, 2, sparse=True)
    found = rows_of([table(torch.tensor([1, 3, 3])).sum(), None], [table.weight])
    assert found.tolist() == [[0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 2.0, 2.0, 0.0, 0.0], [0.0] * 10]
