"""The gradient of every task on what the tasks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

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

    def columns(dtype: torch.dtype, width: int) -> Iterator[Tensor]:
        return (part.to(dtype) for part in rows.split(width, dim=1))

    return _sum_of_products(columns, rows, averaged)


def _sum_of_products(
    columns: Callable[[torch.dtype, int], Iterable[Tensor]], rows: Tensor, averaged: bool
) -> Tensor:
    """Return ``J Jᵀ`` on the CPU, of slices of so many columns in a dtype.

    Args:
        columns: Function that walks the slices.
        rows: Tensor ``[T, ...]`` of the dtype and device of ``J``.
        averaged: Whether to average the result over the ranks.
    """

    def product(dtype: torch.dtype, width: int) -> Tensor:
        total = rows.new_zeros(len(rows), len(rows), dtype=dtype)
        for part in columns(dtype, width):
            total.addmm_(part, part.T)
        return (average(total) if averaged else total).cpu()

    # Slices that fit a CPU's cache take half the time of long ones; a GPU likes few calls.
    width = 1 << 16 if rows.device.type == "cpu" else 1 << 22
    gramian = product(torch.promote_types(rows.dtype, torch.float32), width)
    # The square of a norm above 1e19 overflows single precision.
    return gramian if gramian.isfinite().all() else product(torch.float64, 1 << 20)


def gramian_over_ranks(rows: Tensor | TaskRows, of_features: bool, exact: bool) -> Tensor:
    """Return ``J Jᵀ`` of the gradients of all ranks, see :func:`gramian_of`.

    Args:
        rows: Gradients ``[T, D]`` of this rank.
        of_features: Whether ``rows`` are gradients of features, which every rank has of its own.
        exact: Whether parameters' gradients are averaged, which leaves the averages in the rows,
            or only their inner products.
    """
    gramian = rows.gramian if isinstance(rows, TaskRows) else partial(gramian_of, rows)
    if of_features:  # each rank's loss is its share of the mean loss
        return gramian(averaged=True) / world_size()
    if not exact:
        return gramian(averaged=True)
    if world_size() > 1:
        average(rows.data if isinstance(rows, TaskRows) else rows)
    return gramian()


def dense_strides(leaf: Tensor) -> tuple[int, ...]:
    """Return the strides that autograd gives a leaf's gradient: fused optimizers rely on them."""
    return torch.empty_like(leaf, device="meta").stride()


class TaskRows:
    """Gradients ``[T, D]`` of the tasks on some leaves, in the tensors that autograd makes.

    Autograd hands a gradient over where a leaf has none, so that nothing is zeroed, added or
    copied. The matrix exists only once it is asked for.

    Attributes:
        leaves: The tensors whose gradients are collected; ``D`` is the sum of their sizes.
        grads: For each task its gradient of each leaf; None where the task does not reach the leaf.

    Args:
        leaves: See above.
        tasks: Number ``T`` of the tasks.
        device: Device of the matrix if there are no leaves.

    Raises:
        TypeError: The leaves differ in dtype or device.
    """

    def __init__(self, leaves: Sequence[Tensor], tasks: int, device: torch.device) -> None:
        kinds = {(leaf.dtype, leaf.device) for leaf in leaves}
        if len(kinds) > 1:
            raise TypeError(
                "parameters that several tasks share must have one dtype and one device to be "
                f"aggregated, found {sorted(map(str, kinds))}"
            )
        self.leaves = list(leaves)
        self.grads: list[list[Tensor | None]] = [[None] * len(leaves) for _ in range(tasks)]
        self._like = leaves[0].new_empty(0) if leaves else torch.empty(0, device=device)
        self._width = sum(leaf.numel() for leaf in leaves)
        self._data: Tensor | None = None

    @property
    def data(self) -> Tensor:
        """The matrix ``[T, D]``. From now on :attr:`grads` are views of it."""
        if self._data is None:
            self._data = self._like.new_zeros(len(self.grads), self._width)
            for row, grads in zip(self._data, self.grads, strict=True):
                views = self.split(row)
                for k, view in enumerate(views):
                    if (grad := grads[k]) is not None:
                        view.copy_(grad)
                    grads[k] = view  # here, so that never two copies of a whole row are held
        return self._data

    @property
    def views(self) -> list[list[Tensor]]:
        """Gradient of each leaf for each task, zero where the task does not reach the leaf."""
        return [
            [
                torch.zeros_like(leaf) if grad is None else grad
                for leaf, grad in zip(self.leaves, grads, strict=True)
            ]
            for grads in self.grads
        ]

    def parted(self, count: int) -> tuple[TaskRows, TaskRows]:
        """Return the gradients of the first leaves and those of the others."""
        first, others = (
            TaskRows(leaves, 0, self._like.device)
            for leaves in (self.leaves[:count], self.leaves[count:])
        )
        first.grads = [grads[:count] for grads in self.grads]
        others.grads = [grads[count:] for grads in self.grads]
        return first, others

    def split(self, flat: Tensor) -> list[Tensor]:
        """View a ``[D]`` tensor in the shapes and the memory format of the leaves."""
        parts = flat.split([leaf.numel() for leaf in self.leaves])
        return [
            part.as_strided(leaf.shape, dense_strides(leaf))
            for part, leaf in zip(parts, self.leaves, strict=True)
        ]

    def take(self, other: TaskRows) -> None:
        """Take over the gradients of the same leaves and the first tasks."""
        position = {id(leaf): i for i, leaf in enumerate(self.leaves)}
        for mine, theirs in zip(self.grads, other.grads, strict=False):
            for leaf, grad in zip(other.leaves, theirs, strict=True):
                if id(leaf) in position:
                    mine[position[id(leaf)]] = grad

    def fill(
        self,
        turns: Sequence[tuple[int, Tensor]],
        announce: Callable[[int], None],
        retain_graph: bool = False,
    ) -> None:
        """Run each loss back, and add its gradient to its row.

        Args:
            turns: Row and loss of each pass.
            announce: Function called with the row before each pass.
            retain_graph: Whether the graph stays usable.
        """
        before = [leaf.grad for leaf in self.leaves]
        try:
            for i, (row, loss) in enumerate(turns):
                for leaf, grad in zip(self.leaves, self.grads[row], strict=True):
                    leaf.grad = grad
                announce(row)
                loss.backward(retain_graph=retain_graph or i + 1 < len(turns))
                self.grads[row] = [laid_out(leaf.grad, leaf) for leaf in self.leaves]
        finally:
            for leaf, grad in zip(self.leaves, before, strict=True):
                leaf.grad = grad

    def gramian(self, averaged: bool = False) -> Tensor:
        """Return ``J Jᵀ`` on the CPU, see :func:`gramian_of`."""
        if self._data is not None or not self.leaves:
            return gramian_of(self.data, averaged)
        return _sum_of_products(self._columns, self._like.expand(len(self.grads), -1), averaged)

    def _columns(self, dtype: torch.dtype, width: int) -> Iterator[Tensor]:
        """Walk slices of at most so many columns; the next one overwrites the last."""
        width = min(width, self._width)
        block = self._like.new_empty(len(self.grads), width, dtype=dtype)
        nothing = block.new_zeros(width) if any(None in grads for grads in self.grads) else block
        parts: list[list[Tensor]] = [[] for _ in self.grads]
        used = 0
        for k, leaf in enumerate(self.leaves):
            size, start = leaf.numel(), 0
            while start < size:
                count = min(width - used, size - start)
                for grads, part in zip(self.grads, parts, strict=True):
                    grad = grads[k]
                    part.append(
                        nothing[:count]
                        if grad is None
                        else grad.as_strided((count,), (1,), grad.storage_offset() + start)
                    )
                start, used = start + count, used + count
                if used == width:
                    yield _joined(parts, block)
                    used = 0
        if used:
            yield _joined(parts, block[:, :used])

    def combined(self, weights: Sequence[float]) -> list[Tensor]:
        """Return ``Jᵀ w`` in the shapes of the leaves; the gradients of the tasks are gone then.

        Args:
            weights: Weights ``[T]``.
        """
        if self._data is not None or widened(self._like) is not self._like:
            return self.split(combine(torch.tensor(weights, dtype=torch.float64), self.data))
        total: list[Tensor | None] = [None] * len(self.leaves)
        for weight, grads in zip(weights, self.grads, strict=True):
            first: list[Tensor] = []
            more: list[tuple[Tensor, Tensor]] = []
            for k, grad in enumerate(grads):
                if grad is not None and (before := total[k]) is not None:
                    more.append((before, grad))
                elif grad is not None:
                    first.append(grad)
                    total[k] = grad
            if first:
                torch._foreach_mul_(first, weight)
            if more:
                torch._foreach_add_(*map(list, zip(*more, strict=True)), alpha=weight)
        self.grads = []
        return [
            torch.zeros_like(leaf) if grad is None else grad
            for leaf, grad in zip(self.leaves, total, strict=True)
        ]


def laid_out(grad: Tensor | None, leaf: Tensor) -> Tensor | None:
    """Return a gradient in the memory format of its leaf; a sparse one becomes dense."""
    if grad is None:
        return None
    grad = grad.to_dense() if grad.is_sparse else grad
    strides = dense_strides(leaf)
    if grad.stride() == strides:
        return grad
    return torch.empty_strided(leaf.shape, strides, dtype=grad.dtype, device=grad.device).copy_(
        grad
    )


def _joined(parts: list[list[Tensor]], block: Tensor) -> Tensor:
    """Fill a block ``[T, W]`` with the parts of each row, and forget the parts."""
    for row, part in zip(block, parts, strict=True):
        torch.cat(part, out=row)
        part.clear()
    return block


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
