"""The features that tasks share: what a module returns, and the gradients that arrive there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mtl_plugins.registry import suggest


def find_module(model: nn.Module, path: str, key: str) -> nn.Module:
    """The module at ``path``.

    Args:
        key: Where the config has the path, for the error message.

    Raises:
        ValueError: There is none.
    """
    modules = dict(model.named_modules())
    if not path or path not in modules:
        raise ValueError(
            f"{key}: the model has no module {path!r}; "
            + suggest(path, [name for name in modules if name and name.count(".") < 2])
        )
    return modules[path]


class FeatureWatch:
    """Looks at the output of a module, and collects the gradients that pass by it.

    Args:
        module: Its output is a tensor, or lists, tuples and dicts of tensors.

    Attributes:
        features: What it returned since :meth:`clear`, in training mode and where it requires a
            gradient.
    """

    def __init__(self, module: nn.Module) -> None:
        self.features: list[Tensor] = []
        self._passed: dict[int, dict[int, Tensor]] = {}  # of each task, by the feature's number
        self._handle = module.register_forward_hook(self._note)

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training and torch.is_grad_enabled():
            tree_map_only(Tensor, self._keep, output)

    def _keep(self, output: Tensor) -> None:
        if output.requires_grad:
            self.features.append(output)

    def clear(self) -> None:
        """Forgets them."""
        self.features, self._passed = [], {}

    def remove(self) -> None:
        """Looks no more."""
        self._handle.remove()
        self.clear()

    @contextmanager
    def collecting(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that says whose gradients pass by next, see :meth:`rows`."""
        self._passed = {}
        passing: dict[int, Tensor] = {}

        def turn(task: int) -> None:
            nonlocal passing
            passing = self._passed.setdefault(task, {})

        def collect(i: int, grad: Tensor) -> None:
            passing[i] = grad

        handles = [f.register_hook(partial(collect, i)) for i, f in enumerate(self.features)]
        try:
            yield turn
        finally:
            for handle in handles:
                handle.remove()

    def rows(self, tasks: int) -> Tensor:
        """``[T, D]``, the gradients that have passed by, of all features one after another."""
        rows = [
            torch.cat(
                [
                    self._passed.get(t, {}).get(i, torch.zeros_like(f)).detach().flatten()
                    for i, f in enumerate(self.features)
                ]
            )
            for t in range(tasks)
        ]
        return torch.stack(rows)


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
