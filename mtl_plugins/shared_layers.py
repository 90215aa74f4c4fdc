"""Layers of heads that several losses go through: their weights are given a gradient once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from mtl_plugins.gradients import dense_strides
from mtl_plugins.nodes import SEVERAL, closed, edges, end_of, is_leaf, variable

_LAYERS = ("ConvolutionBackward0", "AddmmBackward0", "MmBackward0")
"""Operations whose gradient of the weights costs about as much as that of the input."""


class SharedLayers:
    """Convolutions and linear layers that several losses go through.

    A pass that looks for the gradient of features has to go back through such a layer once a loss.
    The gradient of the layer's weights, half of the work, is linear in the gradient ``g_t`` that
    arrives at its output: the passes leave it out, and ``Σ_t g_t`` gives it afterwards, as one
    backward pass of the summed losses would.

    A weight that is used in another way, too, is left to the passes; so is one of a layer that is
    not between a loss and the features.

    Args:
        owner: The only loss that reaches each node, or :data:`SEVERAL`.
        roots: Node of each loss.
        params: Parameters that are trained.

    Attributes:
        others: Leaves that the passes have to reach; None for all, if there is no such layer.
    """

    def __init__(
        self, owner: Mapping[Node, int], roots: Collection[Node], params: Collection[Tensor]
    ) -> None:
        left_over = {id(variable(node)) for node in owner if is_leaf(node)} - set(map(id, params))
        # The passes go to what is left over for certain, and on their way through these nodes.
        passed = _above([n for n in owner if is_leaf(n) and id(variable(n)) in left_over], owner)
        uses: list[tuple[Node, Tensor]] = []
        for node, t in owner.items():
            # A chain of single edges, from a loss or an operation to a weight, is one use of it.
            starts = [child for child, _ in edges(node)]
            starts = starts if len(starts) > 1 else [node] if node in roots else []
            for end in filter(is_leaf, map(end_of, starts)):
                if t == SEVERAL and node in passed and node.name() in _LAYERS:
                    uses.append((node, variable(end)))
                else:
                    left_over.add(id(variable(end)))
        self._weights: dict[Node, list[Tensor]] = {}
        for node, weight in uses:
            if id(weight) not in left_over:
                self._weights.setdefault(node, []).append(weight)
        taken = {id(p) for weights in self._weights.values() for p in weights}
        leaves = [variable(node) for node in owner if is_leaf(node)] if taken else []
        self.others = [p for p in leaves if id(p) not in taken] if taken else None
        self._sums: dict[Node, Tensor] = {}

    @contextmanager
    def summing(self) -> Iterator[None]:
        """Sum what arrives at the layers in the passes of the losses."""

        def arrival(node: Node) -> Callable[[Sequence[Tensor | None]], None]:
            def hook(grads: Sequence[Tensor | None]) -> None:
                if (grad := grads[0]) is not None:
                    before = self._sums.get(node)
                    self._sums[node] = grad if before is None else before + grad

            return hook

        handles = [node.register_prehook(arrival(node)) for node in self._weights]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run_back(self) -> None:
        """Add the gradients of the weights to ``.grad``."""
        while self._sums:
            node, total = self._sums.popitem()
            weights = self._weights[node]
            wanted = set(map(id, weights))
            ways = [(child, end_of(child)) for child, _ in edges(node)]
            on = [c for c, end in ways if not is_leaf(end) or id(variable(end)) not in wanted]
            # A hook on the layer's output was called in the passes, and is not to act again. The
            # same weights may be used once more on the way to the features, which is kept for that.
            handle = node.register_prehook(lambda grads, total=total: (total,))
            try:
                with closed(on):
                    grads = torch.autograd.grad(
                        [GradientEdge(node, 0)], weights, [total], retain_graph=True
                    )
            finally:
                handle.remove()
            for weight, grad in zip(weights, grads, strict=True):
                if weight.grad is not None:
                    weight.grad += grad
                elif grad.stride() == dense_strides(weight):
                    weight.grad = grad
                else:
                    weight.grad = torch.empty_like(weight).copy_(grad)


def _above(leaves: Collection[Node], nodes: Collection[Node]) -> set[Node]:
    """Find the nodes from which any of the leaves is reached."""
    parents: dict[Node, list[Node]] = {}
    for node in nodes:
        for child, _ in edges(node):
            parents.setdefault(child, []).append(node)
    found, stack = set(leaves), list(leaves)
    while stack:
        new = set(parents.get(stack.pop(), ())) - found
        found |= new
        stack += new
    return found
