"""The features that tasks share: outputs of a module, and the gradients that arrive there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge, increment_version
from torch.utils._pytree import tree_map_only

from mtl_plugins.registry import suggest


def find_module(model: nn.Module, path: str, key: str) -> nn.Module:
    """Find the module at ``path``.

    Args:
        model: The model.
        path: Names with dots, as in ``named_modules()``.
        key: Config key of the path, for the error message.

    Raises:
        ValueError: The model has no module at ``path``.
    """
    modules = dict(model.named_modules())
    if not path or path not in modules:
        raise ValueError(
            f"{key}: the model has no module {path!r}; "
            + suggest(path, [name for name in modules if name and name.count(".") < 2])
        )
    return modules[path]


class Features:
    """Outputs of a module in training mode, since they were cleared.

    Args:
        module: Module that returns a tensor, or lists, tuples and dicts of tensors, and that may be
            called several times a step.

    Attributes:
        tensors: The outputs that require a gradient. A tensor that is returned twice counts once.
        edges: Places of ``tensors`` in the autograd graph.
        was_called: Whether the module was called, with gradients enabled.
    """

    def __init__(self, module: nn.Module) -> None:
        self._asleep = False
        self._handle = module.register_forward_hook(self._note)
        self.clear()

    def clear(self) -> None:
        """Forget the outputs."""
        self.tensors: list[Tensor] = []
        self.edges: list[GradientEdge] = []
        self.was_called = False
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def remove(self) -> None:
        """Remove the forward hook."""
        self._handle.remove()
        self.clear()

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Note no outputs for a while, such as in the backward pass of activation checkpointing."""
        self._asleep = True
        try:
            yield
        finally:
            self._asleep = False

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return output
        self.was_called |= not self._asleep
        return tree_map_only(Tensor, self._each, output)

    def _each(self, output: Tensor) -> Tensor:
        if not output.requires_grad:
            return output
        if self._asleep:
            return self._keep(output, 0)
        if id(output) not in self._known:
            kept = self._keep(output, len(self.tensors))
            self.tensors.append(kept)
            self.edges.append(get_gradient_edge(kept))
            self._known[id(output)] = output, kept
        return self._known[id(output)][1]

    def _keep(self, output: Tensor, number: int) -> Tensor:
        """Return the tensor that takes the place of an output."""
        return output


class FeatureWatch(Features):
    """Collects the gradients that pass by the outputs of a module."""

    def clear(self) -> None:
        super().clear()
        self._passed: dict[int, dict[int, Tensor]] = {}

    @contextmanager
    def collecting(self) -> Iterator[Callable[[int], None]]:
        """Give a function that says which task's gradients pass by next, see :meth:`rows`."""
        self._passed = {}
        passing: dict[int, Tensor] = {}

        def turn(task: int) -> None:
            nonlocal passing
            passing = self._passed.setdefault(task, {})

        def collect(i: int, slot: int, grads: Sequence[Tensor | None]) -> None:
            if (grad := grads[slot]) is not None:
                passing[i] = grad

        handles = [
            edge.node.register_prehook(partial(collect, i, edge.output_nr))
            for i, edge in enumerate(self.edges)
        ]
        try:
            yield turn
        finally:
            for handle in handles:
                handle.remove()

    def rows(self, tasks: int) -> Tensor:
        """Return the gradients that have passed by, ``[T, D]``, features one after another."""
        rows = [
            torch.cat(
                [
                    self._passed.get(t, {}).get(i, torch.zeros_like(f)).detach().flatten()
                    for i, f in enumerate(self.tensors)
                ]
            )
            for t in range(tasks)
        ]
        return torch.stack(rows)


class Representation(Features):
    """Cuts the graph at the output of a module, so that the trunk can be run back once for all.

    The layers behind the module get tensors that share the memory of its outputs. A pass from the
    losses ends at these tensors, and leaves the feature-level gradients.
    """

    def clear(self) -> None:
        super().clear()
        self._outputs: list[Tensor] = []
        self._reached: set[int] = set()  # outputs at which a gradient arrived
        self._grads: list[Tensor | None] = []

    def _keep(self, output: Tensor, number: int) -> Tensor:
        arrive: Callable[[Tensor], None] = lambda grad: None  # noqa: E731
        if not self._asleep:
            self._outputs.append(output)
            self._grads.append(None)
            arrive = partial(self._arrive, number)
        # A head may change the returned tensor in place, as any feature.
        anchor = torch.empty((), device=output.device, requires_grad=True)
        kept: Tensor = _Cut.apply(output.detach(), anchor, arrive)
        return kept

    def _arrive(self, number: int, grad: Tensor) -> None:
        self._reached.add(number)
        before = self._grads[number]
        self._grads[number] = grad if before is None else before + grad

    def take_grads(self) -> list[Tensor | None]:
        """Return the gradients that have arrived since the last time, one a feature."""
        found, self._grads = self._grads, [None] * len(self.tensors)
        return found

    @property
    def outputs(self) -> Sequence[Tensor]:
        """Outputs of the module, before the cut."""
        return self._outputs

    def backward(self, grads: Sequence[Tensor | None]) -> None:
        """Run the trunk back from the gradients of its outputs, and forget the outputs.

        An output that no loss made use of is left alone, and so is what lies behind it: a level of
        a pyramid without a head, or a forward pass whose losses were never run back.

        Args:
            grads: Gradient of each feature; None for no gradient.
        """
        for output, kept in zip(self._outputs, self.tensors, strict=True):
            if kept._version:  # changed in place: autograd is to notice if the trunk needs it
                increment_version(output)
        pairs = zip(self._outputs, grads, strict=True)
        used = [
            (output, grad)
            for number, (output, grad) in enumerate(pairs)
            if grad is not None and number in self._reached
        ]
        if used:
            torch.autograd.backward([output for output, _ in used], [grad for _, grad in used])
        self.clear()


class _Cut(torch.autograd.Function):
    """Hands the gradient over in place of passing it on."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, anchor: Tensor, arrive: Callable[[Tensor], None]
    ) -> Tensor:
        ctx.arrive = arrive
        return value.data  # no view of the value: in-place operations are refused on those

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        ctx.arrive(grad)
        return None, None, None
