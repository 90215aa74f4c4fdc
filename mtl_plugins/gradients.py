"""The gradient of every task, in the rows of one flat buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mtl_plugins.distributed import average


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


class Representation:
    """Cuts the graph at the output of a module, so that the trunk can be run back once for all.

    What follows the module gets detached copies of the tensors it returns; their gradients are the
    feature-level gradients.

    Args:
        module: Its output is a tensor, or lists, tuples and dicts of tensors. It may be called
            several times a step.
    """

    def __init__(self, module: nn.Module) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"representation: expected a module, got {type(module).__name__} ({module!r})"
            )
        self.outputs: list[Tensor] = []
        self.leaves: list[Tensor] = []
        module.register_forward_hook(self._cut)

    def _cut(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return output
        return tree_map_only(Tensor, self._detach, output)

    def _detach(self, output: Tensor) -> Tensor:
        if not output.requires_grad:
            return output
        leaf = output.detach().requires_grad_()
        self.outputs.append(output)
        self.leaves.append(leaf)
        return leaf

    def backward(self, grads: Sequence[Tensor | None]) -> None:
        """Runs the trunk back from the gradients of its outputs, and forgets them."""
        pairs = zip(self.outputs, grads, strict=True)
        used = [(output, grad) for output, grad in pairs if grad is not None]
        torch.autograd.backward([output for output, _ in used], [grad for _, grad in used])
        self.outputs, self.leaves = [], []
