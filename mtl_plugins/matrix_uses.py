"""Weights that are used as matrices: convolutions and linear layers, found in the autograd graph.

Autograd keeps the input of such a layer. That input, projected onto a few random directions, stands
in for it wherever only inner products of weight gradients are wanted, see
:mod:`mtl_plugins.sketch`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from mtl_plugins.nodes import is_leaf, variable


@dataclass(frozen=True, eq=False)
class MatrixUse(ABC):
    """One use of a weight ``[C, ...]`` as ``C`` rows of ``K`` elements each.

    Attributes:
        node: Node of the operation.
        rows: Rows of the weight that the operation uses.
    """

    node: Any  # a Node, whose saved values mypy does not know
    rows: slice

    @property
    @abstractmethod
    def saved(self) -> str:
        """Name under which the node keeps the input of the layer."""

    @property
    def is_packed(self) -> bool:
        """Whether a hook packs the input: checkpointing drops it, offloading moves it."""
        return getattr(getattr(self.node, f"_raw{self.saved}"), "unpack_hook", None) is not None

    @property
    @abstractmethod
    def is_first(self) -> bool:
        """Whether nothing before the layer is trained: the input is no activation, or frozen."""

    @abstractmethod
    def project(self, directions: Tensor) -> Tensor:
        """Apply the layer with random rows in place of its own.

        Args:
            directions: The random rows ``[r, ...]``, each in the shape of a row of the weight.

        Returns:
            The output, with ``r`` channels in place of those of the layer (or of each group).
        """

    @abstractmethod
    def mean_input(self) -> Tensor:
        """Return the mean of what a row of the weight is multiplied by, up to its padding.

        Returns:
            The mean, in single precision or above; its shape broadcasts to that of a row.
        """

    @abstractmethod
    def sketch(self, projected: Tensor, grad: Tensor) -> Tensor:
        """Return the gradient of the weight's rows, multiplied by the random ones.

        Args:
            projected: Result of :meth:`project`.
            grad: Gradient of the layer's output.

        Returns:
            The products ``[C, r]``: of row c of the gradient with each random row.
        """


class Convolution(MatrixUse):
    """A convolution in any number of dimensions, not transposed."""

    saved = "_saved_input"

    @property
    def is_first(self) -> bool:
        return self.node.next_functions[0][0] is None

    def project(self, directions: Tensor) -> Tensor:
        node, x = self.node, self.node._saved_input
        filters = directions.to(x)
        return torch.convolution(
            x,
            # Every group sees channels of its own through the same random filters.
            filters.repeat(node._saved_groups, *[1] * (filters.ndim - 1)),
            None,
            node._saved_stride,
            node._saved_padding,
            node._saved_dilation,
            False,
            node._saved_output_padding,
            node._saved_groups,
        )

    def mean_input(self) -> Tensor:
        x = self.node._saved_input
        mean = _mean(x, [0, *range(2, x.ndim)]).unflatten(0, (self.node._saved_groups, -1))
        return mean.mean(dim=0).reshape(-1, *[1] * (x.ndim - 2))

    def sketch(self, projected: Tensor, grad: Tensor) -> Tensor:
        ours, theirs = (
            x.flatten(2).unflatten(1, (self.node._saved_groups, -1)).flatten(0, 1)
            for x in (grad, projected)
        )
        products = (ours @ theirs.mT).unflatten(0, (-1, self.node._saved_groups))
        return products.sum(dim=0).flatten(0, 1)


class Product(MatrixUse):
    """A linear layer, of vectors ``[..., K]``."""

    @property
    def saved(self) -> str:
        return _INPUTS[self.node.name()]

    @property
    def is_first(self) -> bool:
        return self.node.next_functions[self.node.name() == "AddmmBackward0"][0] is None

    def project(self, directions: Tensor) -> Tensor:
        x: Tensor = getattr(self.node, self.saved)
        return x @ directions.to(x).T

    def mean_input(self) -> Tensor:
        x: Tensor = getattr(self.node, self.saved)
        return _mean(x, list(range(x.ndim - 1)))

    def sketch(self, projected: Tensor, grad: Tensor) -> Tensor:
        return grad.flatten(0, -2).T @ projected.flatten(0, -2)


_INPUTS = {
    "AddmmBackward0": "_saved_mat1",
    "MmBackward0": "_saved_self",
    "LinearBackward0": "_saved_input",
}
"""Name of the saved input in the nodes of linear layers."""


def matrix_uses(
    nodes: Iterable[Node], weights: Iterable[Tensor]
) -> dict[int, list[MatrixUse] | None]:
    """Find the uses of weights in a graph.

    Args:
        nodes: Nodes of the graph.
        weights: Leaf tensors with at least two dimensions.

    Returns:
        For the ``id`` of each weight its uses, of which there may be none; None if there is one of
        another kind.
    """
    found: dict[int, list[MatrixUse] | None] = {id(weight): [] for weight in weights}
    for node in nodes:
        if _passes_on(node):
            continue  # a part of the way from a weight to where it is used
        for i in range(len(node.next_functions)):
            weight, rows, turns = _behind(node, i)
            if weight is None or (uses := found.get(id(weight))) is None:
                continue
            use = _use(node, i, weight, rows, turns)
            if use is None:
                found[id(weight)] = None
            else:
                uses.append(use)
    return found


_TURNS = ("TBackward0", "TransposeBackward0")
_SPLITS = ("SplitBackward0", "SplitWithSizesBackward0")


def _mean(x: Tensor, dims: list[int]) -> Tensor:
    total = x.sum(dims, dtype=torch.promote_types(x.dtype, torch.float32))
    # Without examples, as where nothing was detected, there is no mean.
    return total / max(x.numel() // max(total.numel(), 1), 1)


def _passes_on(node: Any) -> bool:
    """Tell whether the node hands on a weight, or some rows of it."""
    name = node.name()
    return name in (*_TURNS, "ToCopyBackward0") or (name in _SPLITS and node._saved_dim == 0)


def _behind(node: Node, number: int) -> tuple[Tensor | None, slice | None, int]:
    """Follow an edge to a leaf.

    Returns:
        The leaf, or None; its rows that come along the edge, None if the edge has other parts of
        it; how often they were transposed.
    """
    child, slot = node.next_functions[number]
    rows: slice | None = slice(None)
    turns = 0
    while child is not None and not is_leaf(child):
        name = child.name()
        if not _passes_on(child):
            return None, rows, turns
        if name in (*_TURNS, *_SPLITS) and rows != slice(None):
            rows = None  # a part of a part, or columns
        elif name in _SPLITS:
            rows = _part(child, slot)
        turns += name in _TURNS
        child, slot = child.next_functions[0]
    return (None if child is None else variable(child)), rows, turns


def _part(node: Any, slot: int) -> slice:
    """Return the rows of an output of a split."""
    if node.name() == "SplitBackward0":
        size = node._saved_split_size
        return slice(slot * size, (slot + 1) * size)
    sizes: Sequence[int] = node._saved_split_sizes
    return slice(sum(sizes[:slot]), sum(sizes[: slot + 1]))


def _use(
    node: Any, number: int, weight: Tensor, rows: slice | None, turns: int
) -> MatrixUse | None:
    """Return how a node uses rows of a weight as a matrix; None if in another way."""
    name = node.name()
    if rows is None:
        return None
    if name == "ConvolutionBackward0":
        plain = number == 1 and not turns and not node._saved_transposed
        return Convolution(node, rows) if plain and weight.ndim > 2 else None
    if weight.ndim != 2 or name not in _INPUTS:
        return None
    if name == "LinearBackward0":
        return Product(node, rows) if number == 1 and turns % 2 == 0 else None
    last = len(node.next_functions) - 1
    plain = number == last and turns % 2 == 1 and getattr(node, "_saved_alpha", 1) == 1
    return Product(node, rows) if plain else None
