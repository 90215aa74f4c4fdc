"""The gradient of every task, in the rows of one flat buffer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from mtl_plugins.distributed import average, gather
from mtl_plugins.step import Batch


def gramian_of(rows: Tensor, averaged: bool = False) -> Tensor:
    """``J Jᵀ``, on the CPU: the one time a step waits for the device.

    Args:
        rows: ``[T, D]``, any floating dtype and device. Half precision is accumulated in single.
        averaged: Whether to average it over the ranks.

    Returns:
        ``[T, T]`` on the CPU, in single or double precision. Not finite only where ``rows`` is not.
    """
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    gramian = rows @ rows.T
    gramian = (average(gramian) if averaged else gramian).cpu()
    if gramian.isfinite().all():
        return gramian
    # The square of a norm above 1e19 overflows single precision. Sliced, to copy little at a time.
    zero = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    exact = sum((c.double() @ c.double().T for c in rows.split(1 << 20, dim=1)), zero)
    return (average(exact) if averaged else exact).cpu()


def dense_strides(leaf: Tensor) -> tuple[int, ...]:
    """The strides that autograd gives the gradient of a leaf: fused optimizers rely on them."""
    return torch.empty_like(leaf, device="meta").stride()


class TaskRows:
    """A ``[T, D]`` buffer whose row t collects the gradients of task t.

    While a row is bound, the ``.grad`` of each leaf is a view into it, so that autograd writes
    the gradient where it is needed and nothing is copied. The buffer is reused from step to step.

    Attributes:
        leaves: The tensors whose gradients are collected; ``D`` is the sum of their sizes.
        data: ``[T, D]``.
        views: For each task, its row in the shapes of the leaves.

    Args:
        device: Of the buffer while there are no leaves.
    """

    def __init__(self, device: torch.device) -> None:
        self.leaves: list[Tensor] = []
        self.data = torch.empty(0, 0, device=device)
        self.views: list[tuple[Tensor, ...]] = []

    def arrange(self, leaves: Sequence[Tensor], tasks: int) -> None:
        """Makes room for the gradients of ``tasks`` tasks on ``leaves``; all rows become zero.

        Raises:
            TypeError: The leaves differ in dtype or device.
        """
        kinds = {(leaf.dtype, leaf.device) for leaf in leaves}
        if len(kinds) > 1:
            raise TypeError(
                "parameters that several tasks share must have one dtype and one device to be "
                f"aggregated, found {sorted(map(str, kinds))}"
            )
        same = len(leaves) == len(self.leaves) and all(
            a is b for a, b in zip(leaves, self.leaves, strict=True)
        )
        if same and len(self.data) == tasks:
            self.data.zero_()
            return
        self.leaves = list(leaves)
        width = sum(leaf.numel() for leaf in leaves)
        # Freed before the new one is allocated.
        self.views, self.data = [], self.data.new_empty(0, 0)
        self.data = (leaves[0] if leaves else self.data).new_zeros(tasks, width)
        self.views = [self.split(row) for row in self.data]

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Views of a ``[D]`` tensor in the shapes of the leaves, and in their memory format."""
        ends = accumulate(leaf.numel() for leaf in self.leaves)
        return tuple(
            flat[end - leaf.numel() : end].as_strided(leaf.shape, dense_strides(leaf))
            for leaf, end in zip(self.leaves, ends, strict=True)
        )

    def add(self, other: TaskRows) -> None:
        """Adds the rows of a buffer that holds some of the same leaves, for the first tasks."""
        position = {id(leaf): i for i, leaf in enumerate(self.leaves)}
        for mine, theirs in zip(self.views, other.views, strict=False):
            for leaf, view in zip(other.leaves, theirs, strict=True):
                mine[position[id(leaf)]].add_(view)

    @contextmanager
    def bound(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that binds a row; afterwards every ``.grad`` is what it was before."""
        before = [leaf.grad for leaf in self.leaves]

        def bind(row: int) -> None:
            for leaf, view in zip(self.leaves, self.views[row], strict=True):
                leaf.grad = view

        try:
            yield bind
        finally:
            for leaf, grad in zip(self.leaves, before, strict=True):
                leaf.grad = grad


def combine(weights: Tensor, rows: Tensor) -> Tensor:
    """``Jᵀ w``, accumulated in single precision where ``J`` is in half.

    Args:
        weights: ``[T]``.
        rows: ``[T, D]``.

    Returns:
        ``[D]``, in the dtype and on the device of the rows.
    """
    wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    return (weights.to(wide) @ wide).to(rows)


def rows_of(
    losses: Sequence[Tensor | None], tensors: Sequence[Tensor], create_graph: bool = False
) -> Tensor:
    """``[T, D]``, the gradient of each loss. No ``.grad`` is touched and the graph stays usable.

    Args:
        losses: Those that are None have the gradient zero.
        tensors: What to differentiate by; ``D`` is the sum of their sizes.
        create_graph: Whether the result can be differentiated.
    """
    zero = torch.cat([torch.zeros_like(x).flatten() for x in tensors])
    rows = []
    for loss in losses:
        if loss is None:
            rows.append(zero)
            continue
        grads = torch.autograd.grad(
            loss, tensors, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
        pairs = zip(grads, tensors, strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(x) if g is None else g).flatten() for g, x in pairs])
        )
    return torch.stack(rows)


class LastLayer:
    """The last layer that all tasks share, of the batch with the most tasks so far.

    Args:
        params: Those that are trained.
    """

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        self._params = params
        self._indices: list[int] = []
        self._tasks: set[str] = set()  # whose it is

    def weights(self, batch: Batch, tasks: Collection[str]) -> list[nn.Parameter]:
        """Its weights; empty if the tasks share none.

        Args:
            batch: The losses.
            tasks: Those that take part, on any rank.
        """
        frozen = any(not self._params[i].requires_grad for i in self._indices)
        if frozen or not set(tasks) <= self._tasks:
            found = batch.graph.last_common(self._params) if batch.raw else []
            flags = [i in found for i in range(len(self._params))]
            everyone = gather(flags, self._params[0].device)
            self._indices = [i for i, ranks in enumerate(everyone) if any(ranks)]
            self._tasks = set(tasks) if self._indices else set()
        return [self._params[i] for i in self._indices]

    def state_dict(self) -> dict[str, Any]:
        """Which one it is."""
        return {"indices": list(self._indices), "tasks": sorted(self._tasks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._indices, self._tasks = list(state["indices"]), set(state["tasks"])
