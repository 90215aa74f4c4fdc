"""Which loss reaches what in the autograd graph, and passes through it that need to know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

NOBODY, SEVERAL = -1, -2

_CHUNK = 1 << 18  # elements of a gradient that are copied at a time, to be multiplied

Slot = tuple[Node, int]  # an output of the operation behind the node: where a gradient arrives


def common_owner(owners: Iterable[int]) -> int:
    """Who owns what has these owners in different batches, or on different ranks."""
    found = set(owners) - {NOBODY}
    return found.pop() if len(found) == 1 else SEVERAL if found else NOBODY


class LossGraph:
    """The autograd graph behind several losses, and the owner of each of its nodes.

    The owner is the only loss that reaches a node, or :data:`SEVERAL`. Every node is visited at
    most twice, however many losses there are: once by the first loss that reaches it, and once by
    the second, which makes it and all that lies behind it common property.

    Args:
        losses: Scalars that require a gradient.

    Attributes:
        hides_a_part: Whether reentrant checkpointing does, which it will compute again.
    """

    def __init__(self, losses: Sequence[Tensor]) -> None:
        self._losses = list(losses)
        self._roots = [get_gradient_edge(loss) for loss in losses]
        self._owner: dict[Node, int] = {}
        self.hides_a_part = False
        for t, root in enumerate(self._roots):
            stack = [root.node]
            while stack:
                node = stack.pop()
                before = self._owner.get(node)
                if before in (t, SEVERAL):
                    continue
                self._owner[node] = t if before is None else SEVERAL
                self.hides_a_part |= node.name() == "CheckpointFunctionBackward"
                stack += [child for child, _ in _edges(node)]

    def owners(self, leaves: Sequence[Tensor]) -> list[int]:
        """For each leaf the index of the only loss that reaches it, or who else.

        Args:
            leaves: Parameters, or other leaf tensors.
        """
        found = {id(_variable(node)): t for node, t in self._owner.items() if _is_leaf(node)}
        unseen = SEVERAL if self.hides_a_part else NOBODY
        return [found.get(id(p), unseen if p.requires_grad else NOBODY) for p in leaves]

    def share(self, leaves: Collection[Tensor]) -> None:
        """Makes these leaves common property, whoever reaches them in this graph."""
        wanted = {id(p) for p in leaves}
        for node in self._owner:
            if _is_leaf(node) and id(_variable(node)) in wanted:
                self._owner[node] = SEVERAL

    def weighted_backward(
        self, seeds: Sequence[Tensor], weights: Sequence[float], own: Sequence[float]
    ) -> None:
        """One backward pass: ``Σ w_t g_t`` for what is shared, its own gradient for the rest.

        Each gradient is multiplied by the weight of its loss where it crosses the border between
        the two.

        Args:
            seeds: The gradient that each loss starts from, a scalar.
            weights: One a loss.
            own: The factor of the gradient of what a loss has alone.
        """
        grads = [
            seed * (w if self._is_shared(root.node) else o)
            for seed, root, w, o in zip(seeds, self._roots, weights, own, strict=True)
        ]
        at_border = [w / o if o else 0.0 for w, o in zip(weights, own, strict=True)]
        handles = []
        for node, t in self._owner.items():
            if t != SEVERAL and at_border[t] != 1.0:
                crosses = [
                    child is not None and self._is_shared(child) for child, _ in node.next_functions
                ]
                if any(crosses):
                    handles.append(node.register_hook(_weigh(at_border[t], crosses)))
        try:
            torch.autograd.backward(self._losses, grads)
        finally:
            for handle in handles:
                handle.remove()

    def gramian(self, leaves: Collection[Tensor], seeds: Sequence[Tensor] | None = None) -> Tensor:
        """``J Jᵀ`` of the gradients on the shared leaves, without ever holding ``J``.

        All tasks go down the graph together, slice by slice in topological order; a slice has no
        more parameters than the largest one has elements. Their gradients on the parameters of a
        slice are multiplied with each other and dropped before the next slice. It computes what one
        backward pass a task does, and holds, for each task, the gradient of the activations between
        two slices and of the parameters of one slice. No ``.grad`` is touched, and the graph stays
        usable.

        A hook on an activation that lies between two slices is called twice, and one that scales
        its gradient scales it twice.

        Args:
            leaves: Those of them that are shared are counted.
            seeds: The gradient that each loss starts from, a scalar; 1 by default.

        Returns:
            ``[T, T]`` in double precision on the device of the losses, as accurate as the dtype of
            the leaves allows.

        Raises:
            RuntimeError: The graph has a part that reentrant checkpointing hides.
        """
        if self.hides_a_part:
            raise RuntimeError(
                "low_memory: it does not go with activation checkpointing, which hides a part of "
                "the graph or computes it again for every slice; use one of the two"
            )
        seeds = [torch.ones_like(loss) for loss in self._losses] if seeds is None else seeds
        return _LockStep(self, leaves).run(seeds)

    def last_common(self, leaves: Sequence[Tensor]) -> list[int]:
        """Where the losses part: the weights that every loss reaches with no other between.

        Counted are weights with two dimensions or more, which are not those of a norm.

        Args:
            leaves: Parameters.

        Returns:
            Their indices.
        """
        index = {id(p): i for i, p in enumerate(leaves) if p.ndim >= 2}
        reach = [set(_behind([root.node])) for root in self._roots]
        # A loss that shares nothing parts with nobody.
        shares = [r for r in reach if any(_is_leaf(n) and self._is_shared(n) for n in r)]
        common = set.intersection(*shares) if shares else set()
        found: set[int] = set()

        def goes_on(node: Node) -> bool:
            ends = [_end(child) for child, _ in _edges(node)]
            here = [
                index[id(_variable(end))]
                for end in ends
                if _is_leaf(end) and end in common and id(_variable(end)) in index
            ]
            found.update(here)
            return not here

        for _ in _behind([root.node for root in self._roots], goes_on):
            pass
        return sorted(found)

    @contextmanager
    def noting_once_differentiable(self) -> Iterator[list[str]]:
        """Gives a list to which a pass with ``create_graph`` adds operations that it leaves out.

        Those have no second derivative: their backward pass says so, or computes something that
        autograd does not see.
        """
        found: list[str] = []

        def note(node: Node) -> Callable[..., None]:
            def hook(grads_in: Sequence[Tensor | None], grads_out: Sequence[Tensor | None]) -> None:
                results = [g for g in grads_in if g is not None]
                lost = any(
                    not g.requires_grad
                    or (g.grad_fn is not None and g.grad_fn.name() == "torch::autograd::Error")
                    for g in results
                )
                # A function written in Python may use what it has saved out of autograd's sight.
                inputs = (*grads_out, *getattr(node, "saved_tensors", ()))
                if lost and any(g is not None and g.requires_grad for g in inputs):
                    found.append(node.name().removesuffix("Backward"))

            return hook

        handles = [node.register_hook(note(node)) for node in self._owner if not _is_leaf(node)]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def _is_shared(self, node: Node) -> bool:
        return self._owner[node] == SEVERAL


class _LockStep:
    """See :meth:`LossGraph.gramian`."""

    def __init__(self, graph: LossGraph, leaves: Collection[Tensor]) -> None:
        self._owner, self._losses = graph._owner, graph._losses
        self._roots = [(root.node, root.output_nr) for root in graph._roots]
        self._leaves = {id(p) for p in leaves}
        self._largest = max((p.numel() for p in leaves), default=0)
        # Edges into each shared node from nodes that have not had their turn.
        self._missing = Counter(c for n in self._owner for c, _ in _edges(n) if self._is_shared(c))
        # What has arrived at shared nodes that have not had their turn: a gradient of each loss.
        self._arrived: dict[Slot, list[Tensor | None]] = {}
        self._gramian = torch.zeros(
            len(self._losses), len(self._losses), dtype=torch.float64, device=self._losses[0].device
        )

    def run(self, seeds: Sequence[Tensor]) -> Tensor:
        for t, (slot, seed) in enumerate(zip(self._roots, seeds, strict=True)):
            self._arrive(slot, t, seed)
        alone = {node for node, t in self._owner.items() if t != SEVERAL}
        roots = dict.fromkeys(node for node, _ in self._arrived)
        ready = [node for node in roots if self._is_shared(node) and not self._missing[node]]
        ready += [child for node in alone for child in self._children_in_turn(node)]
        self._descend(alone)
        while ready:
            piece: set[Node] = set()
            size = 0
            while ready and (not piece or size + _size(ready[-1]) <= self._largest):
                node = ready.pop()
                piece.add(node)
                size += _size(node)
                ready += self._children_in_turn(node)
            self._descend(piece)
        return self._gramian

    def _is_shared(self, node: Node) -> bool:
        return self._owner[node] == SEVERAL

    def _children_in_turn(self, node: Node) -> Iterator[Node]:
        """The shared children, other than leaves, to which every other way has been gone."""
        for child, _ in _edges(node):
            if self._is_shared(child) and not _is_leaf(child):
                self._missing[child] -= 1
                if not self._missing[child]:
                    yield child

    def _descend(self, piece: Collection[Node]) -> None:
        """Takes what has arrived at these nodes to where their edges leave the piece."""
        entries = [slot for slot in self._arrived if slot[0] in piece]
        grads = {slot: self._arrived.pop(slot) for slot in entries}
        edges = [edge for node in piece for edge in _edges(node)]
        exits = [slot for slot in dict.fromkeys(edges) if self._leaves_by(slot, piece)]
        with _closed({child for child, _ in exits if not _is_leaf(child)}):
            for t in range(len(self._losses)) if exits else ():
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
        for child, _ in edges:
            if self._is_shared(child) and _is_leaf(child):
                self._missing[child] -= 1
                if not self._missing[child]:
                    self._multiply(self._arrived.pop((child, 0), []))

    def _leaves_by(self, slot: Slot, piece: Collection[Node]) -> bool:
        child = slot[0]
        if child in piece or not self._is_shared(child):
            return False
        return not _is_leaf(child) or id(_variable(child)) in self._leaves

    def _arrive(self, slot: Slot, t: int, grad: Tensor) -> None:
        entry = self._arrived.setdefault(slot, [None] * len(self._losses))
        before = entry[t]
        entry[t] = grad if before is None else before + grad

    def _multiply(self, grads: Sequence[Tensor | None]) -> None:
        """Adds the products of the gradients on one parameter."""
        found = next((g for g in grads if g is not None), None)
        if found is None:
            return
        flat = [(torch.zeros_like(found) if g is None else g).flatten() for g in grads]
        for parts in zip(*(g.split(_CHUNK) for g in flat), strict=True):
            rows = torch.stack(parts)
            if rows.dtype in (torch.float16, torch.bfloat16):
                rows = rows.float()
            # The square of a norm above 1e19 would overflow single precision.
            largest = rows.abs().amax().clamp(min=torch.finfo(rows.dtype).tiny)
            rows /= largest
            self._gramian += (rows @ rows.T).double() * largest.double() ** 2


def _behind(roots: Iterable[Node], goes_on: Callable[[Node], bool] | None = None) -> Iterator[Node]:
    """The nodes that are reached from these, as long as it goes on."""
    seen: set[Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            if goes_on is None or goes_on(node):
                stack += [child for child, _ in _edges(node)]


def _edges(node: Node) -> list[Slot]:
    return [(child, slot) for child, slot in node.next_functions if child is not None]


def _end(node: Node) -> Node:
    """Where a chain ends: weights are transposed or cast before they are used."""
    while len(edges := _edges(node)) == 1:
        node = edges[0][0]
    return node


def _is_leaf(node: Node) -> bool:
    return hasattr(node, "variable")


def _size(node: Node) -> int:
    """How many parameters hang on it."""
    return sum(_variable(child).numel() for child, _ in _edges(node) if _is_leaf(child))


def _variable(node: Node) -> Tensor:
    variable: Tensor = node.variable  # type: ignore[attr-defined]
    return variable


def _weigh(weight: float, crosses: Sequence[bool]) -> Callable[..., Any]:
    """A hook that weighs the gradients that a node sends over some of its edges."""

    def hook(grads: Sequence[Tensor | None], _: Any) -> tuple[Tensor | None, ...]:
        return tuple(
            weight * grad if crosses_here and grad is not None else grad
            for grad, crosses_here in zip(grads, crosses, strict=True)
        )

    return hook


@contextmanager
def _closed(nodes: Iterable[Node]) -> Iterator[None]:
    """Lets no gradient through these nodes, so that a pass ends where they are."""
    handles = [node.register_prehook(lambda grads: (None,) * len(grads)) for node in nodes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
