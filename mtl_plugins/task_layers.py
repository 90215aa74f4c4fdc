"""Layers that each task has for itself inside a trunk that the tasks share (Recon).

One forward pass serves one task, which :meth:`TaskLayers.of` chooses, as with task-specific norms::

    convert_task_layers(model, ["backbone.layer1.0.conv1"], ["seg", "depth"])
    with TaskLayers(model).of("depth"):
        features = model.backbone(images)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from torch import nn

from mtl_plugins.registry import suggest
from mtl_plugins.task_norm import TaskBatchNorm

APART = "with norms or layers of its own, each task has features of its own"


class TaskLayer(nn.Module):
    """One copy of a layer a task, of which each forward pass uses that of the chosen task.

    The weights of the plain layer load into the copies of all tasks.

    Args:
        layer: Layer that all tasks start from.
        tasks: Names of the tasks.

    Attributes:
        copies: Layer of each task.
        task: Name of the chosen task; None before :meth:`TaskLayers.of` chooses one.
    """

    task: str | None = None

    def __init__(self, layer: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__()
        self.copies = nn.ModuleDict({task: deepcopy(layer) for task in tasks})
        self.training = layer.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer of the chosen task.

        Raises:
            RuntimeError: No task is chosen.
        """
        if self.task is None:
            raise RuntimeError(
                "a TaskLayer was called without a task: run the model inside "
                "`with TaskLayers(model).of(task):`, where the task is one of "
                f"{', '.join(self.copies)}"
            )
        return self.copies[self.task](*args, **kwargs)

    def init_weights(self) -> None:
        """Initialise the copies that can, as MMEngine asks a module's children to."""
        for layer in self.copies.values():
            init: Any = getattr(layer, "init_weights", None)
            if init is not None:
                init()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if not any(key.startswith(f"{prefix}copies.") for key in state_dict):
            for key in [key for key in state_dict if key.startswith(prefix)]:
                value = state_dict.pop(key)
                for task in self.copies:
                    # With load_state_dict(assign=True), the tasks would share one tensor.
                    state_dict[f"{prefix}copies.{task}.{key[len(prefix) :]}"] = value.clone()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class TaskLayers:
    """All layers of a module that each task has for itself.

    Args:
        module: Module after :func:`convert_task_layers`, or one that holds such a module.

    Attributes:
        layers: The layers, by name.
        tasks: Names of the tasks.

    Raises:
        ValueError: The module has no such layer, or layers of different tasks.
    """

    def __init__(self, module: nn.Module) -> None:
        self.layers = {n: m for n, m in module.named_modules() if isinstance(m, TaskLayer)}
        found = {tuple(layer.copies) for layer in self.layers.values()}
        if len(found) != 1:
            raise ValueError(
                f"{type(module).__name__} has "
                + (f"layers of different tasks: {found}" if found else "no task-specific layer; ")
                + ("" if found else "call convert_task_layers first")
            )
        (self.tasks,) = found

    @contextmanager
    def of(self, task: str) -> Iterator[None]:
        """Choose the layers of a task for the forward passes inside.

        Args:
            task: Name of the task.

        Raises:
            ValueError: No task has that name.
        """
        if task not in self.tasks:
            raise ValueError(f"no layer is of the task {task!r}; the tasks are {self.tasks}")
        before = [layer.task for layer in self.layers.values()]
        try:
            for layer in self.layers.values():
                layer.task = task
            yield
        finally:
            for layer, chosen in zip(self.layers.values(), before, strict=True):
                layer.task = chosen


def convert_task_layers(module: nn.Module, names: Sequence[str], tasks: Sequence[str]) -> None:
    """Replace layers by one copy a task, in place.

    An optimizer has to be built afterwards, since the parameters are new. A layer that two parts of
    the module share is replaced in both.

    Args:
        module: Module that has the layers.
        names: Names of the layers, as in ``named_modules()``.
        tasks: Names of the tasks.

    Raises:
        ValueError: The module has no layer with a name, the layer has no parameter, or it is
            task-specific already.
    """
    if not tasks or isinstance(tasks, str) or len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks must be a list of different names, got {tasks!r}")
    if not names or isinstance(names, str) or len(set(names)) < len(names):
        raise ValueError(f"names must be a list of different layers, got {names!r}")
    parts = dict(module.named_modules(remove_duplicate=False))
    new: dict[nn.Module, TaskLayer] = {}
    for name in names:
        if name not in parts or not name:
            raise ValueError(
                f"{type(module).__name__} has no layer {name!r}; {suggest(name, _layers(module))}"
            )
        layer = parts[name]
        if next(layer.parameters(), None) is None:
            raise ValueError(f"{name!r} ({type(layer).__name__}) has no parameter to copy")
        if any(isinstance(part, (TaskLayer, TaskBatchNorm)) for part in layer.modules()) or any(
            isinstance(parts[above], (TaskLayer, TaskBatchNorm)) for above in _above(name)
        ):
            raise ValueError(f"{name!r} is task-specific already")
        if any(name != other and other.startswith(f"{name}.") for other in names):
            raise ValueError(f"{name!r} holds another of the layers; name one of them")
        new[layer] = TaskLayer(layer, tasks)
    for parent in list(module.modules()):
        if parent not in new:
            for key, child in parent._modules.items():
                if child in new:
                    parent._modules[key] = new[child]


def passes_by_task(module: nn.Module) -> bool:
    """Tell whether each forward pass of a module is about one task, with parts of its own."""
    return any(isinstance(part, (TaskLayer, TaskBatchNorm)) for part in module.modules())


def _above(name: str) -> list[str]:
    pieces = name.split(".")
    return [".".join(pieces[:n]) for n in range(1, len(pieces))]


def _layers(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if name and part._parameters]
