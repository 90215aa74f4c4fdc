"""The buffer of task gradients, and the Gramian."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from mtl_plugins.gradients import TaskRows, combine, grads_set_aside, gramian_of, rows_of

CPU = torch.device("cpu")


def leaves() -> list[nn.Parameter]:
    torch.manual_seed(0)
    conv = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    return [nn.Parameter(torch.randn(2, 3)), nn.Parameter(conv), nn.Parameter(torch.randn(5))]


def losses_of(params: list[nn.Parameter]) -> list[torch.Tensor]:
    a, b, c = params
    return [a.exp().sum() + b.square().sum(), (b * b.flip(0)).sum(), a.sum() * c.prod()]


def filled(params: list[nn.Parameter]) -> TaskRows:
    rows = TaskRows(CPU)
    rows.arrange(params, 3)
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


def test_first_leaves_are_the_first_columns():
    params = leaves()
    rows = filled(params)
    some = rows.first(2)
    assert some.shape == (3, 6 + 48)
    for view, p, whole in zip(rows.split(some[0]), params, rows.views[0], strict=False):
        assert view.shape == p.shape
        assert_close(view, whole)


def test_rows_taken_from_another_layout():
    """One leaf moves, one goes, and a task joins."""
    params = leaves()
    old, new = filled(params), TaskRows(CPU)
    new.arrange([params[2], params[0]], 4)
    new.take(old)
    for t in range(3):
        assert_close(new.views[t][0], old.views[t][2])
        assert_close(new.views[t][1], old.views[t][0])
    assert not new.data[3].any()


def test_row_is_bound_while_its_loss_runs_back():
    params = leaves()
    rows, seen = TaskRows(CPU), []
    rows.arrange(params, 3)
    params[1].register_hook(lambda grad: seen.append(params[1].grad.data_ptr()))
    order: list[int] = []
    rows.fill(list(enumerate(losses_of(params)))[:2], order.append)
    assert order == [0, 1]
    assert seen == [rows.views[0][1].data_ptr(), rows.views[1][1].data_ptr()]


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
