"""Puts gates before the methods of a model, and follows the model's losses back to the gates."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node

from mtl_plugins.allocation import BatchTasks
from mtl_plugins.distributed import world_size
from mtl_plugins.gates import Gate, GateTable, scaled, select, tensors, zero
from mtl_plugins.nodes import behind, edges, is_leaf, variable
from mtl_plugins.registry import suggest
from mtl_plugins.tasks import TaskGroups


class GatedMethod:
    """Stands in for a method of a module, as an attribute of that module.

    Unlike a closure, the object survives ``copy.deepcopy(model)``: the copy calls its own modules.

    Attributes:
        name: Path of the module and class, for messages.
        task: The task whose images count.
        losses: Names of the losses known so far.
    """

    def __init__(
        self, gates: AllocationGates, path: str, module: nn.Module, method: str, gate: Gate
    ) -> None:
        self._gates = gates
        self._gate = gate
        self._module = module
        self._method: Callable[..., Any] = getattr(module, method)
        self.name = f"{path} ({type(module).__name__})" if path else type(module).__name__
        self.task = next((t for t in map(gates.groups.task_of, gate.losses) if t), None)
        self.losses = [name for name in gate.losses if gates.groups.task_of(name)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        images = self._gates.images
        # Within another gate the arguments are about the right images already.
        if not images.allocated or self.task is None or self._gates.entered:
            return self._method(*args, **kwargs)
        given = inspect.signature(self._method).bind(*args, **kwargs)
        self._check(given.arguments, images.count)
        chosen = images.chosen(self.task)
        self._gates.entered = True
        try:
            result = self._of_nobody(given) if chosen == [] else self._of(given, chosen)
        finally:
            self._gates.entered = False
        self._gates.note(self, self._gate.unpack(result))
        return result

    def _check(self, given: Mapping[str, Any], images: int) -> None:
        gate = self._gate
        for name, value in given.items():
            if name in gate.maps:
                counts = {len(tensor) for tensor in tensors(value)}
            elif name in gate.lists and value is not None:
                counts = {len(value)}
            elif name in gate.lists or name in gate.whole or _is_plain(value):
                continue
            else:
                raise ValueError(
                    f"{self._gates.key}: {self.name} gets {name!r}, a {type(value).__name__}, and "
                    "its gate does not say whether that has one entry an image; name it there "
                    "(mtl_plugins.gates: maps, lists or whole)"
                )
            if counts - {images}:
                raise ValueError(
                    f"{self._gates.key}: {self.name} gets {name!r} with {sorted(counts)} entries, "
                    f"and the batch has {images} images; expected is one entry for each image"
                )

    def _of(self, given: inspect.BoundArguments, chosen: Sequence[int] | None) -> Any:
        if chosen is not None:
            for name, value in given.arguments.items():
                if name in self._gate.maps:
                    given.arguments[name] = select(value, chosen)
                elif name in self._gate.lists and value is not None:
                    given.arguments[name] = [value[i] for i in chosen]
        return self._called(given)

    def _called(self, given: inspect.BoundArguments) -> Any:
        if self._gate.prepare is not None:
            given.arguments.update(self._gate.prepare(self._gates.model, given.arguments))
        return self._method(*given.args, **given.kwargs)

    def _of_nobody(self, given: inspect.BoundArguments) -> Any:
        if self._gate.nobody is None:
            heads = [self._module.get_submodule(name) for name in self._gate.heads]
            return self._gate.pack({name: zero(*heads) for name in self.losses})
        given.arguments.update(self._gate.nobody(dict(given.arguments)))
        # Running statistics must be about images with the task alone.
        buffers = [(b, b.clone()) for b in self._module.buffers()]
        result = self._called(given)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        losses = self._gate.unpack(result)
        return self._gate.pack(scaled(losses, 0.0)) if losses else result


class AllocationGates:
    """Lets each head of a model train on the images that have its task, and on no others.

    Features and annotations of the other images do not reach a head, so that it neither computes on
    them nor normalises over them. Where no image has the task, its losses are 0. Without tasks in
    the batch nothing changes. Each adapter has a subclass that sets ``table``, ``key`` and
    ``tasks_key``.

    Args:
        model: Model in whose modules methods are replaced.
        groups: Losses of each task.

    Attributes:
        table: The gates of the framework.
        key: Config key of the allocation, for messages.
        tasks_key: Config key of the tasks, for messages.
        entered: Whether a gated method is running.

    Raises:
        ValueError: With the first batch: a loss is not computed on the images of its task alone, or
            the tasks of the images are not those of ``groups``.
    """

    table: GateTable
    key: str
    tasks_key: str

    def __init__(self, model: nn.Module, groups: TaskGroups) -> None:
        self.model = model
        self.groups = groups
        self.images = BatchTasks()
        self.entered = False
        self.turn: str | None = None  # the only task that the forward pass is about
        self._trusted: Sequence[str] = ()
        self._allocated = False  # images have tasks of their own
        self._reasons: list[str] = []  # why a gate does not hold
        self._noted: dict[Any, GatedMethod] = {}  # by the loss's node of the graph
        for path, module in list(model.named_modules()):
            for method, gate, reason in list(self.table.find(module)):
                if reason := reason or gate.refuse(module) or _waits(module, gate):
                    self._reasons.append(reason)
                else:
                    setattr(module, method, GatedMethod(self, path, module, method, gate))
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after)

    @contextmanager
    def only(self, task: str) -> Iterator[None]:
        """Keep the heads of other tasks, as far as they have gates, out of the passes inside.

        A head without a gate is computed as ever; its losses are not those of the task.
        """
        self.turn = task
        try:
            yield
        finally:
            self.turn = None

    def examples(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Iterable[Sequence[str] | None]:
        """Find the tasks of each image in the arguments of the model, None for an image without."""
        raise NotImplementedError

    def is_loss(self, name: str) -> bool:
        """Tell whether the framework trains what the model returns under this name."""
        return True

    def trust(self, patterns: Sequence[str]) -> None:
        """Trust the model to choose the images of the losses that match these shell patterns."""
        self._trusted = patterns

    def note(self, gated: GatedMethod, losses: Mapping[str, Any]) -> None:
        """Note the gate that some losses come from."""
        for name, value in losses.items():
            if self.is_loss(name) and name not in gated.losses:
                gated.losses.append(name)
            self._noted.update({t.grad_fn: gated for t in tensors(value) if t.grad_fn is not None})

    def _before(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._noted.clear()
        each = list(self.examples(args, kwargs)) if model.training else []
        self._allocated = any(tasks is not None for tasks in each)
        if self.turn is not None:
            each = [(self.turn,) if tasks is None or self.turn in tasks else () for tasks in each]
        self.images.note(each)
        if self._allocated:
            self._check_tasks(self.groups.names)

    def _check_tasks(self, names: Sequence[str]) -> None:
        """Compare the tasks that images can have with the tasks of the losses."""
        drawn = self.images.drawn()
        for task in sorted(self.images.names().union(drawn)):
            if names and task not in names:
                raise ValueError(
                    f"{self.key}.tasks: no task is called {task!r}; {suggest(task, names)} "
                    f"({self.tasks_key})"
                )
        if drawn and (left_out := [task for task in names if task not in drawn]):
            raise ValueError(
                f"{self.key}.tasks: {list(drawn)} leaves out {left_out} of {self.tasks_key}, which "
                f"no image would ever train; name all of them: {list(names)}"
            )

    def _after(self, model: nn.Module, args: Any, losses: Any) -> None:
        if self._allocated and isinstance(losses, Mapping) and torch.is_grad_enabled():
            losses = {name: value for name, value in losses.items() if self.is_loss(name)}
            if not self.groups.names:
                self._check_tasks(list(losses))
            for name in losses:
                self._check(name, losses)
        self._noted.clear()
        self.images.note(())

    def _check(self, name: str, losses: Mapping[str, Any]) -> None:
        task = self.groups.task_of(name)
        if task is None or any(fnmatchcase(name, pattern) for pattern in self._trusted):
            return  # TaskGroups reports a loss that no task claims
        for gated in self._sources(losses[name]):
            if gated is None:
                raise ValueError(
                    f"{self.key}: {self._where(name, losses)} computes {name!r} of the task "
                    f"{task!r} on all images, not on those with the task alone"
                    + "".join(f"; {reason}" for reason in dict.fromkeys(self._reasons))
                    + f". Heads that can: {self._heads()}. Train this model without "
                    f"{self.key}, or add a gate for the head: mtl_plugins.gates.GateTable"
                )
            if gated.task != task:
                raise ValueError(
                    f"{self.tasks_key}: {gated.name} computes {', '.join(gated.losses)} together, "
                    f"on the same images, but {name!r} is of the task {task!r} and others of "
                    f"{gated.task!r}. With {self.key} they have to be one task, beside tasks of "
                    f"other heads: {self._heads(but=gated)}"
                )

    def _sources(self, loss: Any) -> Iterator[GatedMethod | None]:
        """Find the gates that a loss comes from; None stands for a way around them."""
        for node in behind(_nodes(loss), goes_on=lambda node: node not in self._noted):
            if node in self._noted:
                yield self._noted[node]
            elif not edges(node):
                yield None

    def _where(self, name: str, losses: Mapping[str, Any]) -> str:
        """Name the parts of the model that this loss trains and some other loss does not."""
        reached = {other: _reached(value) for other, value in losses.items()}
        common = set.intersection(*reached.values()) if len(reached) > 1 else set()
        parts = [
            f"{path} ({type(child).__name__})"
            for path, child in self.model.named_children()
            if (reached[name] - common) & {id(p) for p in child.parameters()}
        ]
        model = type(self.model).__name__
        return f"{' and '.join(parts)} of {model}" if parts else model

    def _heads(self, but: GatedMethod | None = None) -> str:
        found = [
            f"{gated.name}: {', '.join(gated.losses)}"
            for module in self.model.modules()
            for gated in vars(module).values()
            if isinstance(gated, GatedMethod) and gated.losses and gated is not but
        ]
        return "; ".join(dict.fromkeys(found)) or "none"


def _waits(module: nn.Module, gate: Gate) -> str | None:
    """Name the norm that would wait for ranks without an image of the task, if there is one."""
    if gate.keeps_sync or world_size() == 1:
        return None
    for head in gate.heads:
        for layer in module.get_submodule(head).modules():
            if "SyncBatchNorm" in type(layer).__name__:
                return (
                    f"a SyncBN in {head or type(module).__name__} waits for ranks where no image "
                    "has its task; set another norm, such as 'GN'"
                )
    return None


def _reached(loss: Any) -> set[int]:
    """Find the parameters that a loss trains, by id."""
    return {id(variable(node)) for node in behind(_nodes(loss)) if is_leaf(node)}


def _nodes(loss: Any) -> list[Node]:
    """List the nodes that the tensors of a loss come from."""
    return [t.grad_fn for t in tensors(loss) if t.grad_fn is not None]


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
