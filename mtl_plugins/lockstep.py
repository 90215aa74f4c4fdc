"""Gramians of the task gradients, without ever holding the gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from mtl_plugins.gradients import dense
from mtl_plugins.nodes import SEVERAL, Slot, closed, edges, is_leaf, variable

_CHUNK = 1 << 18  # elements of a gradient that are copied at a time, to be multiplied


class LockStep:
    """Takes all tasks down the graph together, see :meth:`LossGraph.gramian`.

    Args:
        owner: The only loss that reaches each node, or :data:`SEVERAL`.
        roots: Slot where the gradient of each loss starts.
        leaves: Parameters to be counted, as far as they are shared.
        apart: Parameters among ``leaves`` whose Gramians are kept apart.
    """

    def __init__(
        self,
        owner: Mapping[Node, int],
        roots: Sequence[Slot],
        leaves: Collection[Tensor],
        apart: Collection[Tensor] = (),
    ) -> None:
        self._owner, self._roots = owner, roots
        self._leaves = {id(p) for p in leaves}
        self._largest = max((p.numel() for p in leaves), default=0)
        # Edges into each shared node from nodes that have not had their turn.
        self._missing = Counter(c for n in owner for c, _ in edges(n) if self._is_shared(c))
        # Gradient of each loss that has arrived at shared nodes that have not had their turn.
        self._arrived: dict[Slot, list[Tensor | None]] = {}
        self.gramian = torch.empty(0)
        self.apart: dict[int, Tensor] = {id(p): self.gramian for p in apart}

    def run(self, seeds: Sequence[Tensor]) -> None:
        """Fill :attr:`gramian`, and :attr:`apart` by the ``id`` of the parameters.

        Args:
            seeds: Gradient that each loss starts from, a scalar.
        """
        count = len(self._roots)
        zero = torch.zeros(count, count, dtype=torch.float64, device=seeds[0].device)
        self.gramian, self.apart = zero, dict.fromkeys(self.apart, zero)
        for t, (slot, seed) in enumerate(zip(self._roots, seeds, strict=True)):
            self._arrive(slot, t, seed)
        # No sets: the order of additions, and with it the last bit, is to be the same in each run.
        alone = dict.fromkeys(node for node, t in self._owner.items() if t != SEVERAL)
        roots = dict.fromkeys(node for node, _ in self._arrived)
        ready = [node for node in roots if self._is_shared(node) and not self._missing[node]]
        ready += [child for node in alone for child in self._children_in_turn(node)]
        self._descend(alone)
        while ready:
            piece: dict[Node, None] = {}
            size = 0
            while ready and (not piece or size + _size(ready[-1]) <= self._largest):
                node = ready.pop()
                piece[node] = None
                size += _size(node)
                ready += self._children_in_turn(node)
            self._descend(piece)

    def _is_shared(self, node: Node) -> bool:
        return self._owner[node] == SEVERAL

    def _children_in_turn(self, node: Node) -> Iterator[Node]:
        """Yield the shared children, other than leaves, that wait for no other node's gradient."""
        for child, _ in edges(node):
            if self._is_shared(child) and not is_leaf(child):
                self._missing[child] -= 1
                if not self._missing[child]:
                    yield child

    def _descend(self, piece: Collection[Node]) -> None:
        """Run the gradients that arrived at a piece back to the edges out of the piece."""
        entries = [slot for slot in self._arrived if slot[0] in piece]
        grads = {slot: self._arrived.pop(slot) for slot in entries}
        onward = [edge for node in piece for edge in edges(node)]
        exits = [slot for slot in dict.fromkeys(onward) if self._leaves_by(slot, piece)]
        with closed({child for child, _ in exits if not is_leaf(child)}):
            for t in range(len(self._roots)) if exits else ():
                starts = [(slot, g[t]) for slot, g in grads.items() if g[t] is not None]
                if not starts:
                    continue
                found = torch.autograd.grad(
                    [GradientEdge(*slot) for slot, _ in starts],
                    [GradientEdge(*slot) for slot in exits],
                    [g for _, g in starts],
                    retain_graph=True,
                    allow_unused=True,
                )
                for slot, grad in zip(exits, found, strict=True):
                    if grad is not None:
                        self._arrive(slot, t, grad)
        for child, _ in onward:
            if self._is_shared(child) and is_leaf(child):
                self._missing[child] -= 1
                if not self._missing[child]:
                    self._multiply(id(variable(child)), self._arrived.pop((child, 0), []))

    def _leaves_by(self, slot: Slot, piece: Collection[Node]) -> bool:
        child = slot[0]
        if child in piece or not self._is_shared(child):
            return False
        return not is_leaf(child) or id(variable(child)) in self._leaves

    def _arrive(self, slot: Slot, t: int, grad: Tensor) -> None:
        grad = dense(grad)
        entry = self._arrived.setdefault(slot, [None] * len(self._roots))
        before = entry[t]
        entry[t] = grad if before is None else before + grad

    def _multiply(self, leaf: int, grads: Sequence[Tensor | None]) -> None:
        """Add the products of the gradients on one parameter."""
        found = next((g for g in grads if g is not None), None)
        if found is None or not found.numel():
            return
        products = torch.zeros_like(self.gramian)
        flat = [(torch.zeros_like(found) if g is None else g).flatten() for g in grads]
        for parts in zip(*(g.split(_CHUNK) for g in flat), strict=True):
            rows = torch.stack(parts)
            if rows.dtype in (torch.float16, torch.bfloat16):
                rows = rows.float()
            # The square of a norm above 1e19 would overflow single precision.
            largest = rows.abs().amax().clamp(min=torch.finfo(rows.dtype).tiny)
            rows /= largest
            products += (rows @ rows.T).double() * largest.double() ** 2
        if leaf in self.apart:
            self.apart[leaf] = self.apart[leaf] + products
        else:
            self.gramian = self.gramian + products


def _size(node: Node) -> int:
    """Return the number of parameters that hang on a node."""
    return sum(variable(child).numel() for child, _ in edges(node) if is_leaf(child))
