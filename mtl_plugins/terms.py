"""The make-up of a loss: how much each term counts in it, and what it reaches past the terms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from mtl_plugins.nodes import Slot, behind, is_leaf, variable


class Besides(NamedTuple):
    """A leaf of the graph that a loss reaches by a way past all of its terms.

    Attributes:
        leaf: The leaf, such as a learned weight of the terms.
        gradient: Gradient ``∂loss/∂leaf`` along that way, of the shape of the leaf.
        weighs: Indices of the terms whose factors depend on the leaf.
    """

    leaf: Tensor
    gradient: Tensor
    weighs: tuple[int, ...]


class MakeUp(NamedTuple):
    """A loss as a function of its terms, to first order.

    Attributes:
        factors: Gradient ``∂loss/∂term`` for each term, of its shape; None for a term that the loss
            does not depend on. A term within another counts only where the loss uses it by itself.
        besides: Leaves that the loss reaches by no term.
    """

    factors: list[Tensor | None]
    besides: list[Besides]


def make_up(loss: Tensor, terms: Sequence[Tensor]) -> MakeUp:
    """Take a loss apart, at the cost of the operations between it and its terms.

    Args:
        loss: A scalar that requires a gradient. The graph behind it stays usable.
        terms: Tensors that require a gradient, each of them once.

    Examples:
        >>> a, b = (torch.ones((), requires_grad=True) * x for x in (2.0, 3.0))
        >>> make_up(a + 0.5 * b, [a, b]).factors
        [tensor(1.), tensor(0.5000)]
    """
    stops = {_slot(term) for term in terms}
    leaves = list(_leaves(loss, stops))
    with _collecting(terms) as factors:
        torch.autograd.grad(
            loss, terms, retain_graph=True, create_graph=bool(leaves), allow_unused=True
        )
    if not leaves:
        return MakeUp(factors, [])
    besides = []
    for leaf in leaves:
        weighs = tuple(i for i, f in enumerate(factors) if f is not None and _reaches(f, leaf))
        # A leaf that weighs nothing may lie anywhere: its gradient could be a pass through a model.
        gradient = _gradient(loss, terms, leaf) if weighs else torch.zeros_like(leaf)
        besides.append(Besides(leaf, gradient, weighs))
    return MakeUp([None if f is None else f.detach() for f in factors], besides)


def _reaches(factor: Tensor, leaf: Tensor) -> bool:
    return any(found is leaf for found in _leaves(factor))


def _gradient(loss: Tensor, terms: Sequence[Tensor], leaf: Tensor) -> Tensor:
    """Compute ``∂loss/∂leaf`` along the ways past the terms."""
    with _collecting(terms):
        return torch.autograd.grad(loss, leaf, retain_graph=True)[0]


@contextmanager
def _collecting(terms: Sequence[Tensor]) -> Iterator[list[Tensor | None]]:
    """Give the list of the gradients that arrive at the terms, none of which goes further."""
    found: list[Tensor | None] = [None] * len(terms)

    def stop(i: int) -> Callable[[Tensor], Tensor]:
        def hook(gradient: Tensor) -> Tensor:
            found[i] = gradient
            return torch.zeros_like(gradient)

        return hook

    handles = [term.register_hook(stop(i)) for i, term in enumerate(terms)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _slot(tensor: Tensor) -> Slot:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _leaves(root: Tensor, stops: Collection[Slot] = ()) -> Iterator[Tensor]:
    """Yield the leaves behind a tensor, except leaves that lie behind one of the stops alone."""
    if root.requires_grad and (slot := _slot(root)) not in stops:
        yield from (variable(node) for node in behind([slot[0]], stops=stops) if is_leaf(node))
