"""Convolutions and linear layers in the graph: products of their gradients, by the gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from mtl_plugins.graph import LossGraph
from mtl_plugins.matrix_uses import MatrixUse, matrix_uses


def uses_of(loss: Tensor, weight: Tensor) -> list[MatrixUse] | None:
    return matrix_uses(LossGraph([loss]).nodes, [weight])[id(weight)]


def output_grads(loss: Tensor, uses: list[MatrixUse]) -> list[Tensor]:
    edges = [torch.autograd.graph.GradientEdge(use.node, 0) for use in uses]
    return list(torch.autograd.grad(loss, edges, retain_graph=True))


def check(loss: Tensor, weight: Tensor, count: int, **tolerance: float) -> None:
    """The sketches of all uses are the gradient times the random rows."""
    uses = uses_of(loss, weight)
    assert uses is not None and len(uses) == count
    directions = torch.randn(5, *weight.shape[1:], dtype=weight.dtype)
    found = torch.zeros(len(weight), 5, dtype=weight.dtype)
    for use, grad in zip(uses, output_grads(loss, uses), strict=True):
        found[use.rows] += use.sketch(use.project(directions), grad)
    (grad,) = torch.autograd.grad(loss, weight)
    assert_close(found, grad.flatten(1) @ directions.flatten(1).T, **tolerance)


def bent(output: Tensor) -> Tensor:
    """A loss whose gradient differs from element to element."""
    return output.sin().sum()


@given(
    dims=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same"]),
    mode=st.sampled_from(["zeros", "reflect"]),
    bias=st.booleans(),
    channels_last=st.booleans(),
    batched=st.booleans(),
)
def test_convolutions(
    dims, groups, kernel, stride, dilation, padding, mode, bias, channels_last, batched
):
    """Depthwise with as many groups as channels; 'same' pads unevenly where the kernel is even."""
    layer = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1](
        4,
        8,
        kernel,
        stride=1 if padding == "same" else stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
        padding_mode=mode,
        dtype=torch.float64,
    )
    x = torch.randn(*((2,) if batched else ()), 4, *[7] * dims, dtype=torch.float64)
    if channels_last and dims == 2 and batched:
        x = x.to(memory_format=torch.channels_last)
    check(bent(layer(x)), layer.weight, 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (2, 2, 3, 6)], ids=len)
@pytest.mark.parametrize("contiguous", [True, False])
def test_linear_layers_of_any_number_of_dimensions(shape, bias, contiguous):
    layer = nn.Linear(6, 4, bias, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    if not contiguous and len(shape) > 2:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    check(bent(layer(x)), layer.weight, 1)


def test_weight_used_several_times():
    """As a head that is applied to every level of a pyramid."""
    layer = nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    check(bent(layer(layer(x))) + bent(layer(x[..., ::2])), layer.weight, 3)


@pytest.mark.parametrize(
    ("query_is_key", "key_is_value", "count"), [(True, True, 1), (False, True, 2), (True, False, 3)]
)
def test_projections_of_attention(query_is_key, key_is_value, count):
    """One product for all of them, two (queries; keys and values), or three, as in DETR."""
    layer = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    x, y = torch.randn(2, 2, 3, 8, dtype=torch.float64)
    query = x if query_is_key else y
    loss = bent(layer(query, x, x if key_is_value else y, need_weights=False)[0])
    check(loss, layer.in_proj_weight, count)
    loss = bent(layer(query, x, x if key_is_value else y, need_weights=False)[0])
    check(loss, layer.out_proj.weight, 1)


def test_mixed_precision():
    """The weight is cast on its way to the layer, once for several uses."""
    layer = nn.Conv2d(4, 4, 3)
    linear = nn.Linear(4, 6)
    x = torch.randn(2, 4, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(layer(x))
        z = linear(y.flatten(2).mT)
    check(bent(z.float()), layer.weight, 2, rtol=0.05, atol=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        z = linear(y.detach().flatten(2).mT)
    check(bent(z.float()), linear.weight, 1, rtol=0.05, atol=0.3)


def scaled(weight: Tensor, x: Tensor) -> Tensor:
    return F.conv2d(x, 2.0 * weight)


def transposed(weight: Tensor, x: Tensor) -> Tensor:
    return F.conv_transpose2d(x, weight)


def turned(weight: Tensor, x: Tensor) -> Tensor:
    return F.conv2d(x, weight.transpose(2, 3))


def swapped_twice(weight: Tensor, x: Tensor) -> Tensor:
    return F.conv2d(x, weight.transpose(0, 1).transpose(0, 2).transpose(1, 2))


def also_decayed(weight: Tensor, x: Tensor) -> Tensor:
    return F.conv2d(x, weight) + weight.square().sum()


@pytest.mark.parametrize("use", [scaled, transposed, turned, swapped_twice, also_decayed])
def test_other_uses_of_a_kernel(use):
    weight = torch.randn(4, 4, 4, 4, requires_grad=True)
    assert uses_of(bent(use(weight, torch.randn(2, 4, 9, 9))), weight) is None


def from_the_left(weight: Tensor, x: Tensor) -> Tensor:
    return weight @ x


def not_transposed(weight: Tensor, x: Tensor) -> Tensor:
    return x @ weight


def with_itself(weight: Tensor, x: Tensor) -> Tensor:
    return weight @ weight.T


def doubled(weight: Tensor, x: Tensor) -> Tensor:
    return torch.addmm(x, x, weight.T, alpha=2)


def looked_up(weight: Tensor, x: Tensor) -> Tensor:
    return F.embedding(torch.tensor([0, 2]), weight)


def split_by_columns(weight: Tensor, x: Tensor) -> Tensor:
    return x[:, :2] @ weight.split(2, dim=1)[0].T


def split_twice(weight: Tensor, x: Tensor) -> Tensor:
    return x @ weight.split(2)[1].split(1)[0].T


def split_after_turning(weight: Tensor, x: Tensor) -> Tensor:
    return x[:, :2] @ weight.T.split(2)[0]


@pytest.mark.parametrize(
    "use",
    [
        from_the_left,
        not_transposed,
        with_itself,
        doubled,
        looked_up,
        split_by_columns,
        split_twice,
        split_after_turning,
    ],
)
def test_other_uses_of_a_matrix(use):
    weight = torch.randn(4, 4, requires_grad=True)
    assert uses_of(bent(use(weight, torch.randn(4, 4))), weight) is None


def test_weight_that_is_not_used():
    weight = torch.randn(4, 4, requires_grad=True)
    assert uses_of(torch.ones((), requires_grad=True) * 2.0, weight) == []
