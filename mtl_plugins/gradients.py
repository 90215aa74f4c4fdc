"""The gradient of every task, in the rows of one flat buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtl_plugins.distributed import average, world_size
from mtl_plugins.transfer import send


def gramian_of(rows: Tensor, averaged: bool = False) -> Tensor:
    """Return ``J Jᵀ`` on the CPU: the one time a step waits for the device.

    Args:
        rows: Gradients ``[T, D]``, any floating dtype and device. Half precision is accumulated in
            single.
        averaged: Whether to average the result over the ranks.

    Returns:
        The Gramian ``[T, T]`` on the CPU, in single or double precision. Not finite only where
        ``rows`` is not.
    """
    wide = torch.promote_types(rows.dtype, torch.float32)
    # Slices that fit a CPU's cache take half the time of the whole; a GPU likes few calls.
    step = 1 << 16 if rows.device.type == "cpu" else max(rows.shape[1], 1)
    gramian = _sum_of_products(rows, wide, step)
    gramian = (average(gramian) if averaged else gramian).cpu()
    if gramian.isfinite().all():
        return gramian
    # The square of a norm above 1e19 overflows single precision. Sliced, to copy little at a time.
    exact = _sum_of_products(rows, torch.float64, 1 << 20)
    return (average(exact) if averaged else exact).cpu()


def _sum_of_products(rows: Tensor, dtype: torch.dtype, step: int) -> Tensor:
    """Return ``J Jᵀ``, accumulated in a dtype over slices of so many columns."""
    total = rows.new_zeros(len(rows), len(rows), dtype=dtype)
    for columns in rows.split(step, dim=1):
        columns = columns.to(dtype)
        total.addmm_(columns, columns.T)
    return total


def gramian_over_ranks(rows: Tensor, of_features: bool, exact: bool) -> Tensor:
    """Return ``J Jᵀ`` of the gradients of all ranks, see :func:`gramian_of`.

    Args:
        rows: Gradients ``[T, D]`` of this rank.
        of_features: Whether ``rows`` are gradients of features, which every rank has of its own.
        exact: Whether parameters' gradients are averaged, which leaves the averages in the rows,
            or only their inner products.
    """
    if of_features:  # each rank's loss is its share of the mean loss
        return gramian_of(rows, averaged=True) / world_size()
    return gramian_of(average(rows)) if exact else gramian_of(rows, averaged=True)


def dense_strides(leaf: Tensor) -> tuple[int, ...]:
    """Return the strides that autograd gives a leaf's gradient: fused optimizers rely on them."""
    return torch.empty_like(leaf, device="meta").stride()


class TaskRows:
    """A ``[T, D]`` buffer whose row t collects the gradients of task t.

    While a row is bound, the ``.grad`` of each leaf is a view into it, so that autograd writes
    the gradient where it is needed and nothing is copied. The buffer is reused from step to step.

    Attributes:
        leaves: The tensors whose gradients are collected; ``D`` is the sum of their sizes.
        data: The buffer, ``[T, D]``.
        views: Row of each task, in the shapes of the leaves.

    Args:
        device: Device of the buffer while there are no leaves.
    """

    def __init__(self, device: torch.device) -> None:
        self.leaves: list[Tensor] = []
        self.data = torch.empty(0, 0, device=device)
        self.views: list[tuple[Tensor, ...]] = []

    def arrange(self, leaves: Sequence[Tensor], tasks: int) -> None:
        """Make room for the gradients of ``tasks`` tasks on ``leaves``; all rows become zero.

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
        # Free the old buffer before the new one is allocated.
        self.views, self.data = [], self.data.new_empty(0, 0)
        self.data = (leaves[0] if leaves else self.data).new_zeros(tasks, width)
        self.views = [self.split(row) for row in self.data]

    def first(self, count: int) -> Tensor:
        """Return ``[T, D']``, the columns of the first ``count`` leaves."""
        return self.data[:, : sum(leaf.numel() for leaf in self.leaves[:count])]

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """View a ``[D']`` tensor in the shapes and the memory format of the first leaves."""
        ends = accumulate(leaf.numel() for leaf in self.leaves)
        return tuple(
            flat[end - leaf.numel() : end].as_strided(leaf.shape, dense_strides(leaf))
            for leaf, end in zip(self.leaves, ends, strict=True)
            if end <= len(flat)
        )

    def take(self, other: TaskRows) -> None:
        """Add the rows of a buffer that holds some of the same leaves, for the first tasks."""
        position = {id(leaf): i for i, leaf in enumerate(self.leaves)}
        for mine, theirs in zip(self.views, other.views, strict=False):
            for leaf, view in zip(other.leaves, theirs, strict=True):
                if id(leaf) in position:
                    mine[position[id(leaf)]].add_(view)

    def fill(
        self,
        turns: Sequence[tuple[int, Tensor]],
        announce: Callable[[int], None],
        retain_graph: bool = False,
    ) -> None:
        """Run each loss back into its row.

        Args:
            turns: Row and loss of each pass.
            announce: Function called with the row before each pass.
            retain_graph: Whether the graph stays usable.
        """
        with self._bound() as bind:
            for i, (row, loss) in enumerate(turns):
                bind(row)
                announce(row)
                loss.backward(retain_graph=retain_graph or i + 1 < len(turns))

    @contextmanager
    def _bound(self) -> Iterator[Callable[[int], None]]:
        """Give a function that binds a row; afterwards every ``.grad`` is what it was before."""
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
    """Return ``Jᵀ w``, accumulated in single precision where ``J`` is in half.

    Args:
        weights: Weights ``[T]``.
        rows: Gradients ``[T, D]``.

    Returns:
        The weighted sum ``[D]``, in the dtype and on the device of the rows.
    """
    wide = widened(rows)
    return (send(weights, wide.device, wide.dtype) @ wide).to(rows)


def widened(rows: Tensor) -> Tensor:
    """Return rows in half precision in single precision, and others as they are."""
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows


def rows_of(
    losses: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    create_graph: bool = False,
    edges: Sequence[GradientEdge] | None = None,
) -> Tensor:
    """Return the gradient of each loss. No ``.grad`` is touched and the graph stays usable.

    Args:
        losses: Losses; None has the gradient zero.
        tensors: Tensors to differentiate by; ``D`` is the sum of their sizes.
        create_graph: Whether the result can be differentiated.
        edges: Places of the tensors in the graph, if they may have been changed in place since.

    Returns:
        The gradients, ``[T, D]``.
    """
    zero = torch.cat([torch.zeros_like(x).flatten() for x in tensors])
    rows = []
    for loss in losses:
        if loss is None:
            rows.append(zero)
            continue
        grads = torch.autograd.grad(
            loss,
            tensors if edges is None else edges,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
        )
        pairs = zip(grads, tensors, strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(x) if g is None else g).flatten() for g, x in pairs])
        )
    return torch.stack(rows)


@contextmanager
def grads_set_aside(params: Iterable[Tensor]) -> Iterator[None]:
    """Leave every ``.grad`` None for a while, and then what it was before."""
    before = [(p, p.grad) for p in params]
    for p, _ in before:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in before:
            p.grad = grad
