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

_SLICE = 1 << 16
"""Number of columns that fit a CPU's cache: inner products of such slices take half the time."""


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
    step = _SLICE if rows.device.type == "cpu" else 1 << 22

    def product(dtype: torch.dtype) -> Tensor:
        total = rows.new_zeros(len(rows), len(rows), dtype=dtype)
        for part in rows.split(step, dim=1):
            wide = part.to(dtype)
            total.addmm_(wide, wide.T)
        return total

    return _on_cpu(product, rows.dtype, averaged)


def _on_cpu(product: Callable[[torch.dtype], Tensor], dtype: torch.dtype, averaged: bool) -> Tensor:
    """Return ``J Jᵀ`` on the CPU, computed in single precision if it fits, else in double.

    Args:
        product: Function that computes ``J Jᵀ`` in a dtype.
        dtype: Dtype of ``J``.
        averaged: Whether to average the result over the ranks.
    """
    for wide in (torch.promote_types(dtype, torch.float32), torch.float64):
        gramian = product(wide)
        gramian = (average(gramian) if averaged else gramian).cpu()
        # The square of a norm above 1e19 overflows single precision.
        if gramian.isfinite().all():
            break
    return gramian


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
        average(rows.matrix() if isinstance(rows, TaskRows) else rows)
    return gramian()


def dense_strides(leaf: Tensor) -> tuple[int, ...]:
    """Return the strides that autograd gives a leaf's gradient: fused optimizers rely on them."""
    return torch.empty_like(leaf, device="meta").stride()


class TaskRows:
    """Gradients ``[T, D]`` of the tasks on some leaves.

    Autograd hands a gradient over where a leaf has none, and nothing is zeroed, added or copied. A
    method that wants the matrix asks for it before the passes, which then write to it.

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
        self._matrix: Tensor | None = None

    def matrix(self) -> Tensor:
        """Return the matrix ``[T, D]``, of which :attr:`grads` are views from now on."""
        if self._matrix is None:
            self._matrix = self._like.new_zeros(len(self.grads), self._width)
            for t, row in enumerate(self._matrix):
                held, self.grads[t] = self.grads[t], [*self.split(row)]
                for view, grad in zip(self.split(row), held, strict=True):
                    if grad is not None:
                        view.copy_(grad)
        return self._matrix

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

    def by_leaf(self) -> Iterator[Tensor]:
        """Walk the gradients ``[T, n]`` of each leaf with ``n`` elements."""
        for column in zip(*self.views, strict=True):
            yield torch.stack([grad.flatten() for grad in column])

    def parted(self, count: int) -> tuple[TaskRows, TaskRows]:
        """Return the gradients of the first leaves and those of the others."""
        first, others = (
            TaskRows(leaves, 0, self._like.device)
            for leaves in (self.leaves[:count], self.leaves[count:])
        )
        first.grads = [grads[:count] for grads in self.grads]
        others.grads = [grads[count:] for grads in self.grads]
        if self._matrix is not None:
            first._matrix, others._matrix = self._matrix.tensor_split([first._width], dim=1)
        return first, others

    def split(self, flat: Tensor) -> list[Tensor]:
        """View a ``[D]`` tensor in the shapes and the memory format of the leaves."""
        parts = flat.split([leaf.numel() for leaf in self.leaves])
        return [
            part.as_strided(leaf.shape, dense_strides(leaf))
            for part, leaf in zip(parts, self.leaves, strict=True)
        ]

    def take(self, other: TaskRows) -> None:
        """Take over the gradients of the leaves that both have, for the first tasks."""
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
        self._take_apart()
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

    def _take_apart(self) -> None:
        """Give gradients memory of their own, before they are changed in place."""
        if self._matrix is None:
            flat = apart([grad for grads in self.grads for grad in grads])
            width = len(self.leaves)
            self.grads = [flat[t * width : (t + 1) * width] for t in range(len(self.grads))]

    def gramian(self, averaged: bool = False) -> Tensor:
        """Return ``J Jᵀ`` on the CPU, see :func:`gramian_of`."""
        if self._matrix is not None or not self.leaves:
            return gramian_of(self.matrix(), averaged)
        return _on_cpu(self._products, self._like.dtype, averaged)

    def _products(self, dtype: torch.dtype) -> Tensor:
        count = len(self.grads)
        zero = self._like.new_zeros((), dtype=dtype)
        found = [[[zero] for _ in range(t + 1)] for t in range(count)]
        for parts in self._slices():
            wide = [(t, part.to(dtype)) for t, part in parts]
            for i, (t, x) in enumerate(wide):
                for s, y in wide[: i + 1]:
                    found[t][s].append(torch.dot(x, y))
        gramian = self._like.new_zeros(count, count, dtype=dtype)
        t, s = torch.tril_indices(count, count)
        gramian[t, s] = torch.stack([torch.stack(pair).sum() for row in found for pair in row])
        return gramian.tril() + gramian.tril(-1).T

    def _slices(self) -> Iterator[list[tuple[int, Tensor]]]:
        """Walk slices of the gradients, each with the tasks that have one."""
        for k, leaf in enumerate(self.leaves):
            flat = {
                t: grad.as_strided((leaf.numel(),), (1,))
                for t, grads in enumerate(self.grads)
                if (grad := grads[k]) is not None
            }
            for start in range(0, leaf.numel(), _SLICE):
                yield [(t, grad[start : start + _SLICE]) for t, grad in flat.items()]

    def combined(self, weights: Sequence[float]) -> list[Tensor]:
        """Return ``Jᵀ w`` in the shapes of the leaves; the gradients of the tasks are gone then.

        Args:
            weights: Weights ``[T]``.
        """
        if self._matrix is not None or widened(self._like) is not self._like:
            return self.split(combine(torch.tensor(weights, dtype=torch.float64), self.matrix()))
        self._take_apart()
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
    grad = dense(grad)
    strides = dense_strides(leaf)
    if grad.stride() == strides:
        return grad
    return torch.empty_strided(leaf.shape, strides, dtype=grad.dtype, device=grad.device).copy_(
        grad
    )


def dense(grad: Tensor) -> Tensor:
    """Return a gradient with all its elements, as a sparse one does not have them."""
    return grad.to_dense() if grad.is_sparse else grad


def apart(grads: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Return gradients of which no two share memory.

    Autograd hands one tensor, in two views, to two parameters that are reshaped and then added.
    """
    taken: dict[int, list[tuple[int, int]]] = {}  # places in each storage
    found: list[Tensor | None] = []
    for grad in grads:
        if grad is not None and grad.numel() and not grad.is_sparse:
            here = grad.to_local() if hasattr(grad, "to_local") else grad  # a rank's part
            steps = [(n - 1) * by for n, by in zip(here.shape, here.stride(), strict=True)]
            first, last = here.data_ptr(), here.data_ptr() + sum(steps) * here.element_size()
            others = taken.setdefault(here.untyped_storage().data_ptr(), [])
            if any(first <= stop and start <= last for start, stop in others):
                grad = grad.clone()
            else:
                others.append((first, last))
        found.append(grad)
    return found


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
        whole = [torch.zeros_like(x) if g is None else dense(g) for g, x in pairs]
        rows.append(torch.cat([grad.flatten() for grad in whole]))
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
