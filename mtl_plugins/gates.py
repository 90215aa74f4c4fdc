"""Gates: the part of task allocation that lets each head train on the images of its task alone.

A gate stands before a method that computes losses, and passes on the part of its arguments that is
about the images with the task of those losses. Each framework has one :class:`GateTable` with the
methods of its heads; a head of your own joins it with :meth:`GateTable.register`. A head that is in
no table is never trained on wrong images: :class:`AllocationGates` follows each loss that the model
returns back to the gate that it came from, and stops before the first step where there is none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from mtl_plugins.allocation import BatchTasks
from mtl_plugins.distributed import world_size
from mtl_plugins.registry import suggest
from mtl_plugins.tasks import TaskGroups

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
        unpack: Finds the losses in the result of the method.
        pack: Makes a result of losses alone, for a batch in which no image has the task.
        prepare: Changes the arguments, given the model, once they are about the right images.
        nobody: Changes the arguments into such as are about no image at all. The method is then
            called where no image has the task, too, as heads that communicate with other ranks
            need it, and its losses count nothing.
        refuse: Says why the gate does not hold for a module, if so.
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
        """Adds a gate, or exchanges the one that the class has for this method.

        Args:
            cls: The class of the head, which has the method.
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
        """Yields the method and the gate of each entry for a module, and why it does not hold."""
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


class GatedMethod:
    """Stands in the place of a method: an attribute of the module that has it.

    Unlike a closure it survives ``copy.deepcopy(model)``, whose copy then calls its own modules.

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
        # Within another gate, what the method gets is about the right images already.
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
                    f"{self._gates.key}: {self.name} gets {name!r}, a {type(value).__name__} of "
                    "which nobody said whether it has one entry an image; say so in its gate "
                    "(mtl_plugins.gates: maps, lists or whole)"
                )
            if counts - {images}:
                raise ValueError(
                    f"{self._gates.key}: {self.name} gets {name!r} with {sorted(counts)} entries, "
                    f"and the batch has {images} images; which of them are about which image "
                    "nobody knows"
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
        # Running statistics are to be about images with the task.
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
    the batch nothing changes. An adapter says what the attributes without a value are.

    Args:
        model: Methods of its modules are replaced.
        groups: Which losses make which task.

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
        self._trusted: Sequence[str] = ()
        self._reasons: list[str] = []  # why a gate does not hold
        self._noted: dict[Any, GatedMethod] = {}  # node of the graph: whose loss it is
        for path, module in list(model.named_modules()):
            for method, gate, reason in self.table.find(module):
                if reason := reason or gate.refuse(module) or _waits(module, gate):
                    self._reasons.append(reason)
                else:
                    setattr(module, method, GatedMethod(self, path, module, method, gate))
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after)

    def examples(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Iterable[Sequence[str] | None]:
        """Finds the tasks of each image in the arguments of the model; None where it has none."""
        raise NotImplementedError

    def is_loss(self, name: str) -> bool:
        """Tells whether the framework trains what the model returns under this name."""
        return True

    def trust(self, patterns: Sequence[str]) -> None:
        """Names losses of which the model itself sees to the images, by shell patterns."""
        self._trusted = patterns

    def note(self, gated: GatedMethod, losses: Mapping[str, Any]) -> None:
        """Notes which gate some losses come from."""
        for name, value in losses.items():
            if self.is_loss(name) and name not in gated.losses:
                gated.losses.append(name)
            self._noted.update({t.grad_fn: gated for t in tensors(value) if t.grad_fn is not None})

    def _before(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._noted.clear()
        self.images.note(self.examples(args, kwargs) if model.training else ())
        if self.images.allocated:
            self._check_tasks(self.groups.names)

    def _check_tasks(self, names: Sequence[str]) -> None:
        """Compares the tasks that images can have with those that there are."""
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
        if self.images.allocated and isinstance(losses, Mapping) and torch.is_grad_enabled():
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
            return  # TaskGroups tells which loss no task claims
        for gated in self._sources(losses[name]):
            if gated is None:
                raise ValueError(
                    f"{self.key}: {self._where(name, losses)} computes {name!r} of the task "
                    f"{task!r} on all images, not on those with the task alone"
                    + "".join(f"; {reason}" for reason in self._reasons)
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

    def _sources(self, loss: Any) -> set[GatedMethod | None]:
        """Finds the gates that a loss comes from; None stands for a way around them."""
        found: set[GatedMethod | None] = set()
        nodes, seen = [t.grad_fn for t in tensors(loss) if t.grad_fn is not None], set()
        while nodes and None not in found:
            node = nodes.pop()
            if node in self._noted:
                found.add(self._noted[node])
            elif node not in seen:
                seen.add(node)
                following = [n for n, _ in node.next_functions if n is not None]
                nodes += following
                if not following:
                    found.add(None)
        return found

    def _where(self, name: str, losses: Mapping[str, Any]) -> str:
        """Names the parts of the model that a loss trains, and not all losses do."""
        reached = {other: _reached(value) for other, value in losses.items()}
        common = set.intersection(*reached.values())
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
    """Says which norm would wait for ranks that have no image of the task."""
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
    """Finds the parameters that a loss trains, by id."""
    nodes, seen, found = [t.grad_fn for t in tensors(loss)], set(), set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.add(id(getattr(node, "variable", None)))
            nodes += [n for n, _ in node.next_functions]
    return found


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def tensors(value: Any) -> Iterator[Tensor]:
    """Yields the tensors of a nested structure of lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(each)


def select(maps: Any, chosen: Sequence[int]) -> Any:
    """Takes some rows of each tensor.

    Args:
        maps: A tensor with one row an image, or a nested structure of such tensors. Anything else
            in there stays as it is.
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
    """Multiplies losses, each a tensor or a list with one a level."""
    return {
        name: [factor * each for each in value] if isinstance(value, list) else factor * value
        for name, value in losses.items()
    }


def zero(*heads: nn.Module) -> Tensor:
    """Makes the loss of heads that no example trains.

    The loss is 0 for each of their parameters, so that they have a gradient on every rank.
    """
    params = [p for head in heads for p in head.parameters()]
    nothing = torch.zeros((), device=params[0].device if params else None)
    return sum((0.0 * p.sum() for p in params if p.requires_grad), nothing)
