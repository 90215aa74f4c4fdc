"""Gates: the part of task allocation that lets each head train on the images of its task alone.

A gate stands before a method that computes losses, and passes on the part of its arguments that is
about the images with the task of those losses. Each framework has one :class:`GateTable` with the
methods of its heads; a head of your own joins it with :meth:`GateTable.register`. A head that is in
no table is never trained on wrong images: :class:`~mtl_plugins.gating.AllocationGates` follows each
loss that the model returns back to the gate that it came from, and stops before the first step
where there is none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtl_plugins.registry import suggest

Arguments = dict[str, Any]
Losses = dict[str, Any]


def _same(value: Any) -> Any:
    return value


def _nothing(module: nn.Module) -> None:
    return None


@dataclass(frozen=True)
class Gate:
    """How a method that computes losses is restricted to some images of a batch.

    Attributes:
        losses: Names of the losses that the method computes, as the model returns them. The first
            one that a task claims decides the task; where no image has it, all of them are 0.
        maps: Names of the arguments that are tensors with one row an image, or hold such tensors.
        lists: Names of the arguments that are lists with one entry an image.
        whole: Names of the arguments that are passed on as they are, since they are about no image.
            Numbers, strings and None need not be named.
        heads: Names of the submodules that the losses train; the module itself by default.
        needs: Names of other methods on which the gate relies: it holds for a subclass that
            overrides neither them nor the gated method.
        unpack: Function that finds the losses in the result of the method.
        pack: Function that makes a result of losses alone, for a batch in which no image has the
            task.
        prepare: Function that changes the arguments, given the model, once they are about the right
            images.
        nobody: Function that changes the arguments into such as are about no image at all. The
            method is then called where no image has the task, too, as heads that communicate with
            other ranks need it, and its losses count nothing.
        refuse: Function that says why the gate does not hold for a module, if so.
        keeps_sync: Whether a SyncBN of the heads may stay, since it never meets a wrong image.
    """

    losses: tuple[str, ...]
    maps: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("",)
    needs: tuple[str, ...] = ()
    unpack: Callable[[Any], Mapping[str, Any]] = _same
    pack: Callable[[Losses], Any] = _same
    prepare: Callable[[nn.Module, Arguments], Arguments] | None = None
    nobody: Callable[[Arguments], Arguments] | None = None
    refuse: Callable[[nn.Module], str | None] = _nothing
    keeps_sync: bool = False


class GateTable:
    """Holds the gates for the heads of a framework.

    A gate holds for subclasses as well, unless they override the method.

    Examples:
        A head of your own, whose method gets features and one sample an image. With MMDetection the
        table is ``GATES`` of :mod:`mtl_plugins.mm.allocation`, with Detectron2 that of
        :mod:`mtl_plugins.d2.allocation`; call ``register`` beside the class.

        >>> from mtl_plugins.gates import GateTable
        >>> GATES = GateTable()
        >>> class DepthHead(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.predict = nn.Linear(4, 1)
        ...
        ...     def loss(self, x, samples):
        ...         depth = torch.tensor([sample["depth"] for sample in samples])
        ...         return {"loss_depth": (self.predict(x).squeeze(1) - depth).abs().mean()}
        >>> GATES.register(
        ...     DepthHead, "loss", losses=["loss_depth"], maps=["x"], lists=["samples"]
        ... )
    """

    def __init__(self) -> None:
        self._gates: dict[type, dict[str, Gate]] = {}

    def register(self, cls: type, method: str, **options: Any) -> None:
        """Add a gate, or exchange the gate that the class has for this method.

        Args:
            cls: Class of the head, which has the method.
            method: Name of the method.
            **options: The attributes of :class:`Gate`, names as lists or tuples.

        Raises:
            TypeError: The class has no such method, or the method no such argument.
        """
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in options.items()
        }
        gate = Gate(**given)
        if not callable(getattr(cls, method, None)):
            raise TypeError(f"{cls.__name__} has no method {method!r}")
        valid = list(inspect.signature(getattr(cls, method)).parameters)[1:]
        for name in (*gate.maps, *gate.lists, *gate.whole):
            if name not in valid:
                raise TypeError(
                    f"{cls.__name__}.{method} has no argument {name!r}; {suggest(name, valid)}"
                )
        self._gates.setdefault(cls, {})[method] = gate

    def find(self, module: nn.Module) -> Iterator[tuple[str, Gate, str | None]]:
        """Yield method and gate of each entry for a module, and why the gate does not hold."""
        found = set()
        for cls in type(module).__mro__:
            for method, gate in self._gates.get(cls, {}).items():
                if method not in found:
                    found.add(method)
                    yield method, gate, _overridden(module, cls, (method, *gate.needs))


def _overridden(module: nn.Module, cls: type, methods: Iterable[str]) -> str | None:
    for method in methods:
        if method in vars(module) or getattr(type(module), method) is not getattr(cls, method):
            return f"{type(module).__name__} overrides {method!r} of {cls.__name__}"
    return None


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested structure of lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(each)


def select(maps: Any, chosen: Sequence[int]) -> Any:
    """Take some rows of each tensor.

    Args:
        maps: A tensor with one row an image, or a nested structure of such tensors. Other values in
            the structure stay as they are.
        chosen: Indices of the images.
    """
    if isinstance(maps, Tensor):
        return maps[list(chosen)]
    if isinstance(maps, Mapping):
        return {key: select(value, chosen) for key, value in maps.items()}
    if isinstance(maps, (list, tuple)):
        return type(maps)(select(value, chosen) for value in maps)
    return maps


def scaled(losses: Mapping[str, Any], factor: float | Tensor) -> Losses:
    """Multiply losses, each a tensor or a list of tensors, one for each level of a pyramid."""
    return {
        name: [factor * each for each in value] if isinstance(value, list) else factor * value
        for name, value in losses.items()
    }


def zero(*heads: nn.Module) -> Tensor:
    """Make the loss of heads that no example trains.

    The loss is 0 for each of their parameters, so that they have a gradient on every rank.
    """
    params = [p for head in heads for p in head.parameters()]
    nothing = torch.zeros((), device=params[0].device if params else None)
    return sum((0.0 * p.sum() for p in params if p.requires_grad), nothing)
