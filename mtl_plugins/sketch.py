"""Sketches of the task gradients: their inner products, at a fraction of their cost."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from mtl_plugins.distributed import average, gather, world_size
from mtl_plugins.draws import RandomMethod
from mtl_plugins.gradients import dense
from mtl_plugins.graph import LossGraph
from mtl_plugins.matrix_uses import MatrixUse, matrix_uses
from mtl_plugins.nodes import edges, is_leaf, variable

logger = logging.getLogger(__name__)

_UNUSED, _MATRIX, _FIRST, _OTHER = range(4)
"""Kinds of a weight in a graph; of several, on several ranks, the last counts."""


class Sketcher(RandomMethod):
    r"""Takes sketches of the task gradients, whose inner products are those of the gradients.

    A convolution or linear layer has a weight of ``C`` rows with ``K`` elements. In place of its
    gradient :math:`g_t` a sketch has :math:`g_t R^\top`, ``[C, r]``, where the ``r × K`` elements
    of :math:`R` are drawn from :math:`N(0, 1/r)`, once for all tasks, so that :math:`E\langle g_i
    R^\top, g_j R^\top\rangle = \langle g_i, g_j\rangle`, as in a random projection (Johnson and
    Lindenstrauss 1984). The layer's input is projected onto :math:`R` once; a task then costs the
    gradients of the activations, and little more. All other gradients are in the sketch as they
    are, with those of weights with :math:`K \le r`, and those of the first layer: images are so
    much alike that its gradients have few directions, of which a few random rows tell little.

    Behind a ReLU, and in images, inputs have a large mean, along which all gradients point. One of
    the rows is therefore the direction :math:`q` of the mean, exactly, and the others are drawn
    orthogonal to it: :math:`R^\top R` has the identity as its mean all the same, and the error of
    an inner product is about half.

    Args:
        rows: Number ``r`` of random rows.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        # Whether each shared parameter is sketched, as the ranks have agreed, by its index.
        self._sketched: dict[int, bool] = {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"sketched": dict(self._sketched)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._sketched = dict(state["sketched"])

    @torch.no_grad()
    def take(
        self,
        graph: LossGraph,
        shared: Mapping[int, Tensor],
        turns: Sequence[tuple[int, Tensor]],
        tasks: int,
        device: torch.device,
    ) -> Tensor:
        """Run every task back through the activations alone; no ``.grad`` is touched.

        Args:
            graph: Graph of this rank, which stays usable.
            shared: Parameters that the tasks share, by their index; the same on every rank.
            turns: Number and loss of each task.
            tasks: Number of all tasks.
            device: Device of the sketches.

        Returns:
            The sketches ``[T, S]``, in single precision or above; with the same columns on every
            rank.

        Raises:
            ValueError: Checkpointing hides the inputs of layers, or no layer can be sketched.
        """
        wide = {
            i: p
            for i, p in shared.items()
            # A hook on a parameter is to see the gradient itself.
            if p.ndim > 1 and math.prod(p.shape[1:]) > self.rows and not p._backward_hooks
        }
        uses = matrix_uses(graph.nodes, wide.values())
        self._refuse_hidden(graph, uses)
        self._agree(wide, uses, device)
        leaves = [_Leaf(p, self._sketched.get(i, False), self.rows) for i, p in shared.items()]
        dtype = torch.float32
        for p in shared.values():
            dtype = torch.promote_types(dtype, p.dtype)
        data = torch.zeros(tasks, sum(leaf.width for leaf in leaves), dtype=dtype, device=device)
        sketched = [leaf for leaf in leaves if leaf.sketched]
        for leaf in sketched:
            leaf.uses = uses[id(leaf.tensor)] or ()
        _draw(sketched, self.device_generator(device))
        parts = data.split([leaf.width for leaf in leaves], dim=1)
        for leaf, columns in zip(leaves, parts, strict=True):
            leaf.begin(columns)
        _run(graph, leaves, turns)
        return data

    def _refuse_hidden(
        self, graph: LossGraph, uses: Mapping[int, Sequence[MatrixUse] | None]
    ) -> None:
        if graph.hides_a_part or any(use.is_packed for some in uses.values() for use in some or ()):
            raise ValueError(
                "gramian: 'sketch' takes the inputs of the layers that autograd keeps, and does "
                "not go with activation checkpointing or other hooks on saved tensors; use "
                "gramian='exact', or leave those off"
            )

    def _agree(
        self,
        wide: Mapping[int, Tensor],
        uses: Mapping[int, Sequence[MatrixUse] | None],
        device: torch.device,
    ) -> None:
        """Decide with the other ranks which parameters that are new here are sketched."""
        new = [i for i in wide if i not in self._sketched]
        if not new:
            return
        found = [uses[id(wide[i])] for i in new]
        kinds = [_kind(some) for some in found]
        for i, ranks in zip(new, gather(kinds, device), strict=True):
            if max(ranks) != _UNUSED:
                self._sketched[i] = max(ranks) == _MATRIX
        if self._sketched and set(kinds) == {_OTHER} and not any(self._sketched.values()):
            raise ValueError(
                f"gramian: 'sketch' is for convolutions and linear layers, and none of the "
                f"{len(wide)} large weights that the tasks share is seen to be used as one: is the "
                "model compiled? Use gramian='exact'"
            )
        logger.info(
            "gramian='sketch': %d of %d weights with more than %d columns are sketched, "
            "the others taken exactly",
            sum(self._sketched.values()),
            len(wide),
            self.rows,
        )


def _kind(uses: Sequence[MatrixUse] | None) -> int:
    """Return the kind of a weight with these uses; None for a use that is not as a matrix."""
    if uses is None:
        return _OTHER
    if any(use.is_first for use in uses):
        return _FIRST
    return _MATRIX if uses else _UNUSED


class _Leaf:
    """A shared parameter in the sketch of a step.

    Args:
        tensor: The parameter.
        sketched: Whether its gradient is sketched.
        rows: Number of random rows.

    Attributes:
        width: Number of columns in the sketch.
        uses: Uses as a matrix; empty where the gradient itself is needed.
        directions: Random rows ``[r, ...]``, in the shape of rows of the parameter.
    """

    def __init__(self, tensor: Tensor, sketched: bool, rows: int) -> None:
        self.tensor, self.sketched, self.rows = tensor, sketched, rows
        self.width = len(tensor) * rows if sketched else tensor.numel()
        self.uses: Sequence[MatrixUse] = ()
        self.directions = self._columns = torch.empty(0)
        self._projected: dict[MatrixUse, Tensor] = {}

    def mean_input(self) -> Tensor:
        """Return the sum of the mean inputs of all uses, in the shape of a row."""
        row = self.tensor[0].detach()
        total = torch.zeros_like(row, dtype=torch.promote_types(row.dtype, torch.float32))
        for use in self.uses:
            total += use.mean_input().to(total)
        return total

    def begin(self, columns: Tensor) -> None:
        """Project the inputs of the layers onto the random rows.

        Args:
            columns: Columns ``[T, width]`` of the sketches.
        """
        self._columns = columns
        if self.sketched:
            self._columns = columns.unflatten(1, (len(self.tensor), self.rows))
            self._projected = {use: use.project(self.directions) for use in self.uses}

    @property
    def is_whole(self) -> bool:
        """Whether the gradient itself is needed; not while the parameter is frozen."""
        return not self.uses and self.tensor.requires_grad

    def add(self, task: int, use: MatrixUse, grad: Tensor) -> None:
        """Add the part of the gradient that comes by a use."""
        self._columns[task, use.rows] += use.sketch(self._projected[use], grad)

    def add_whole(self, task: int, grad: Tensor) -> None:
        """Add the gradient itself."""
        grad = dense(grad)
        if self.sketched:
            grad = grad.flatten(1) @ self.directions.to(grad).flatten(1).T
        self._columns[task] += grad.reshape(self._columns[task].shape)


def _draw(leaves: Sequence[_Leaf], generator: torch.Generator) -> None:
    """Draw the random rows of each leaf, the same on every rank.

    Args:
        leaves: Parameters that are sketched.
        generator: Generator of the step.
    """
    means = [leaf.mean_input() for leaf in leaves]
    if world_size() > 1 and means:  # as sketches are averaged, so have to be their rows
        whole = average(torch.cat([mean.flatten() for mean in means]))
        parts = whole.split([mean.numel() for mean in means])
        means = [part.view_as(mean) for part, mean in zip(parts, means, strict=True)]
    for leaf, mean in zip(leaves, means, strict=True):
        first = mean.flatten() / mean.norm().clamp(min=torch.finfo(mean.dtype).tiny)
        others = _normal(leaf.rows - 1, mean.numel(), generator).to(first)
        others -= (others @ first)[:, None] * first
        rows = torch.cat([first[None], others / math.sqrt(leaf.rows - 1)])
        leaf.directions = rows.view(leaf.rows, *mean.shape)


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn((rows, columns), generator=generator, device=generator.device)


def _run(graph: LossGraph, leaves: Sequence[_Leaf], turns: Sequence[tuple[int, Tensor]]) -> None:
    """Run each task back to the leaves, without the gradients of weights that are sketched."""
    by_node = {use.node: (leaf, use) for leaf in leaves for use in leaf.uses}
    whole = [leaf for leaf in leaves if leaf.is_whole]
    last = _last(graph.nodes, by_node, {id(leaf.tensor) for leaf in whole})
    ends = [get_gradient_edge(leaf.tensor) for leaf in whole]
    ends += [GradientEdge(node, 0) for node in last]
    if not ends:  # nothing is shared, or known to be
        return
    task = 0

    def note(leaf: _Leaf, use: MatrixUse) -> Any:
        def hook(grads: Sequence[Tensor | None]) -> None:
            if grads[0] is not None:
                leaf.add(task, use, grads[0])

        return hook

    handles = [node.register_prehook(note(*of)) for node, of in by_node.items() if node not in last]
    try:
        for task, loss in turns:
            found = torch.autograd.grad(loss, ends, retain_graph=True, allow_unused=True)
            for leaf, grad in zip(whole, found, strict=False):
                if grad is not None:
                    leaf.add_whole(task, grad)
            for node, grad in zip(last, found[len(whole) :], strict=True):
                if grad is not None:
                    by_node[node][0].add(task, by_node[node][1], grad)
    finally:
        for handle in handles:
            handle.remove()


def _last(nodes: Collection[Node], wanted: Collection[Node], leaves: Collection[int]) -> list[Node]:
    """Find the wanted nodes with no other wanted node or leaf behind: there a pass ends."""
    found: list[Node] = []
    leads: dict[Node, bool] = {}  # to something that is wanted, at the node or behind it
    children = {node: [child for child, _ in edges(node)] for node in nodes}
    for node in TopologicalSorter(children).static_order():
        leads[node] = any(leads[child] for child in children[node])
        if is_leaf(node):
            leads[node] = id(variable(node)) in leaves
        elif node in wanted and not leads[node]:
            found.append(node)
            leads[node] = True
    return found
