"""The autograd graph behind losses: which loss reaches what, and passes that need to know."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from mtl_plugins.lockstep import LockStep
from mtl_plugins.nodes import (
    HIDDEN,
    NOBODY,
    SEVERAL,
    behind,
    edges,
    elements,
    end_of,
    is_leaf,
    variable,
)
from mtl_plugins.shared_layers import SharedLayers

_FEW = 128
"""Elements up to which the gradient of a loss may be about losses, rather than features."""


class LossGraph:
    """The autograd graph behind several losses, and the owner of each of its nodes.

    The owner is the only loss that reaches a node, or :data:`SEVERAL`. Every node is visited at
    most twice, however many losses there are: once by the first loss that reaches it, and once by
    the second, which makes it and all that lies behind it common property.

    Args:
        losses: Scalars that require a gradient.

    Attributes:
        hides_a_part: Whether reentrant checkpointing hides a part of the graph, which is computed
            again in the backward pass.
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
                stack += [child for child, _ in edges(node)]

    @property
    def nodes(self) -> Collection[Node]:
        """All nodes."""
        return self._owner.keys()

    def owners(self, leaves: Sequence[Tensor]) -> list[int]:
        """Find the only loss that reaches each leaf.

        Args:
            leaves: Parameters, or other leaf tensors.

        Returns:
            For each leaf the index of the loss, :data:`SEVERAL`, :data:`NOBODY`, or :data:`HIDDEN`
            where checkpointing may hide who reaches the leaf.
        """
        found = {id(variable(node)): t for node, t in self._owner.items() if is_leaf(node)}
        unseen = HIDDEN if self.hides_a_part else NOBODY
        return [found.get(id(p), unseen if p.requires_grad else NOBODY) for p in leaves]

    @cached_property
    def tells_heads_apart(self) -> bool:
        """Whether nodes that several losses reach are shared, rather than just behind a common one.

        Losses that were stacked, or that one node returns (a compiled model, a hook, a checkpoint),
        reach every head. Such losses meet where their gradients have few elements, or at several
        outputs of one node, or one of them has nothing of its own.
        """
        own = {t for node, t in self._owner.items() if is_leaf(node)}
        for t, root in enumerate(self._roots):
            if t not in own and any(is_leaf(n) and self._is_shared(n) for n in behind([root.node])):
                return False
        meet = [(root.node, root.output_nr) for root in self._roots if self._is_shared(root.node)]
        for node, t in self._owner.items():
            if t != SEVERAL:
                meet += [slot for slot in edges(node) if self._is_shared(slot[0])]
        slots = set(meet)
        if len({node for node, _ in slots}) < len(slots):
            return False
        return all(is_leaf(slot[0]) or elements(slot) > _FEW for slot in slots)

    def share(self, leaves: Collection[Tensor]) -> None:
        """Make these leaves common property, whoever reaches them in this graph."""
        wanted = {id(p) for p in leaves}
        for node in self._owner:
            if is_leaf(node) and id(variable(node)) in wanted:
                self._owner[node] = SEVERAL

    def weighted_backward(
        self, seeds: Sequence[Tensor], weights: Sequence[float], own: Sequence[float]
    ) -> None:
        """Run back once: ``Σ w_t g_t`` for what is shared, the own gradient for the rest.

        Each gradient is multiplied by the weight of its loss where it crosses the border between
        the two.

        Args:
            seeds: Gradient that each loss starts from, a scalar.
            weights: Weight of each loss.
            own: Factor of each loss's gradient of the parameters that it alone reaches.
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
        """Return ``J Jᵀ`` of the gradients on the shared leaves, see :meth:`gramians`."""
        return self.gramians(leaves, (), seeds)[0]

    def gramians(
        self,
        leaves: Collection[Tensor],
        apart: Collection[Tensor] = (),
        seeds: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return ``J Jᵀ`` of the gradients on the shared leaves, without ever holding ``J``.

        All tasks go down the graph together, slice by slice in topological order; a slice has no
        more parameters than the largest one has elements. Their gradients on the parameters of a
        slice are multiplied with each other and dropped before the next slice. The method computes
        as much as one backward pass a task, and holds, for each task, the gradient of the
        activations between two slices and of the parameters of one slice. No ``.grad`` is touched,
        and the graph stays usable.

        A hook on an activation that lies between two slices is called twice, and one that scales
        its gradient scales it twice.

        Args:
            leaves: Parameters, of which the shared ones count.
            apart: More parameters, whose Gramians are not added up.
            seeds: Gradient that each loss starts from, a scalar; 1 by default.

        Returns:
            The Gramian ``[T, T]`` in double precision on the device of the losses, as accurate as
            the dtype of the leaves allows; and a Gramian for each parameter of ``apart``.

        Raises:
            RuntimeError: The graph has a part that reentrant checkpointing hides.
        """
        if self.hides_a_part:
            raise RuntimeError(
                "low_memory: it does not go with activation checkpointing, which hides a part of "
                "the graph or computes it again for every slice; use one of the two"
            )
        seeds = [torch.ones_like(loss) for loss in self._losses] if seeds is None else seeds
        roots = [(root.node, root.output_nr) for root in self._roots]
        steps = LockStep(self._owner, roots, [*leaves, *apart], apart)
        steps.run(seeds)
        return steps.gramian, [steps.apart[id(p)] for p in apart]

    def shared_layers(self, params: Collection[Tensor]) -> SharedLayers:
        """Find the layers that several losses go through; none where a part of them is hidden.

        Args:
            params: Parameters that are trained.
        """
        owner = {} if self.hides_a_part else self._owner
        return SharedLayers(owner, {root.node for root in self._roots}, params)

    def last_common(self, leaves: Sequence[Tensor], but: Collection[int] = ()) -> list[int]:
        """Find where losses part: the weights that every loss reaches with no others between.

        Only weights with two dimensions or more count, which excludes the weights of norms.

        Args:
            leaves: Parameters.
            but: Indices of parameters that do not count.

        Returns:
            Indices of the weights.
        """
        index = {id(p): i for i, p in enumerate(leaves) if p.ndim >= 2 and i not in but}
        reach = [set(behind([root.node])) for root in self._roots]
        # A loss that shares nothing parts with nobody.
        shares = [r for r in reach if any(is_leaf(n) and self._is_shared(n) for n in r)]
        common = set.intersection(*shares) if shares else set()
        found: set[int] = set()

        def goes_on(node: Node) -> bool:
            ends = [end_of(child) for child, _ in edges(node)]
            here = [
                index[id(variable(end))]
                for end in ends
                if is_leaf(end) and end in common and id(variable(end)) in index
            ]
            found.update(here)
            return not here

        for _ in behind([root.node for root in self._roots], goes_on):
            pass
        return sorted(found)

    @contextmanager
    def noting_once_differentiable(self) -> Iterator[list[str]]:
        """Give a list to which a pass with ``create_graph`` adds operations that it leaves out.

        Such an operation has no second derivative: its backward pass says so, or computes out of
        autograd's sight.
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

        handles = [node.register_hook(note(node)) for node in self._owner if not is_leaf(node)]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def _is_shared(self, node: Node) -> bool:
        return self._owner[node] == SEVERAL


def _weigh(weight: float, crosses: Sequence[bool]) -> Callable[..., Any]:
    """Return a hook that weighs the gradients that a node sends over some of its edges."""

    def hook(grads: Sequence[Tensor | None], _: Any) -> tuple[Tensor | None, ...]:
        return tuple(
            weight * grad if crosses_here and grad is not None else grad
            for grad, crosses_here in zip(grads, crosses, strict=True)
        )

    return hook
