"""Nodes of the autograd graph: their edges, leaves and sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.autograd.graph import Node

NOBODY, SEVERAL, HIDDEN = -1, -2, -3
"""Values in place of the only loss that reaches a node: none, several, not to be seen."""

Slot = tuple[Node, int]
"""An output of the operation behind a node: where a gradient arrives."""


def common_owner(owners: Iterable[int]) -> int:
    """Return the owner of what has these owners in different batches, or on different ranks."""
    found = set(owners) - {NOBODY}
    return found.pop() if len(found) == 1 else SEVERAL if found else NOBODY


def edges(node: Node) -> list[Slot]:
    """Return the edges to the nodes that this one sends gradients to."""
    return [(child, slot) for child, slot in node.next_functions if child is not None]


def is_leaf(node: Node) -> bool:
    """Tell whether the node accumulates the gradient of a leaf tensor."""
    return hasattr(node, "variable")


def variable(node: Node) -> Tensor:
    """Return the tensor of a leaf node."""
    tensor: Tensor = node.variable  # type: ignore[attr-defined]
    return tensor


def elements(slot: Slot) -> float:
    """Return the number of elements of a gradient that arrives at a slot; infinite if unknown."""
    node, number = slot
    # A private attribute, and the only place where the shape is; without it the caller goes on.
    metadata = getattr(node, "_input_metadata", ())
    return math.prod(metadata[number].shape) if number < len(metadata) else math.inf


def end_of(node: Node) -> Node:
    """Return the end of a chain: weights are transposed or cast before they are used."""
    while len(onward := edges(node)) == 1:
        node = onward[0][0]
    return node


def behind(
    roots: Iterable[Node],
    goes_on: Callable[[Node], bool] | None = None,
    stops: Collection[Slot] = (),
) -> Iterator[Node]:
    """Walk the nodes that are reached from the roots, each of them once.

    Args:
        roots: Nodes to begin with.
        goes_on: Function that tells whether to walk on behind a node; by default always.
        stops: Outputs through which the walk does not go; another output of their node lets it.
    """
    seen: set[Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            if goes_on is None or goes_on(node):
                stack += [edge[0] for edge in edges(node) if edge not in stops]


@contextmanager
def closed(nodes: Iterable[Node]) -> Iterator[None]:
    """Let no gradient through these nodes, so that a pass ends at them."""
    handles = [node.register_prehook(lambda grads: (None,) * len(grads)) for node in nodes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
