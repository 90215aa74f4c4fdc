"""Task-specific batch normalisation behind shared convolutions.

A trunk keeps one set of convolutions for all tasks, and gets one batch norm a task behind each of
them: scale, shift and running statistics. One forward pass then serves one task, which
:meth:`TaskNorm.of` chooses::

    convert_task_norm(backbone, ["seg", "depth"], lambda net: net(torch.zeros(1, 3, 64, 64)))
    with task_norm(backbone).of("depth"):
        features = backbone(images)
    plain = fold_task_norm(backbone, "depth")  # for deployment
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

logger = logging.getLogger(__name__)


class TaskBatchNorm(nn.Module):
    """One batch norm a task, of which each forward pass uses that of the chosen task.

    The weights of a plain batch norm load into the norms of all tasks.

    Args:
        norm: Batch norm that all tasks start from, a SyncBatchNorm included.
        tasks: Names of the tasks.
        conv: Shared convolution that feeds the norm.

    Attributes:
        norms: Batch norm of each task.
        task: Name of the chosen task; None before :meth:`TaskNorm.of` chooses one.
    """

    task: str | None = None

    def __init__(self, norm: _BatchNorm, tasks: Sequence[str], conv: nn.Module) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({task: deepcopy(norm) for task in tasks})
        self.training = norm.training
        # In a tuple, the convolution is no submodule: it has its place in the network.
        self._fed_by = (conv,)

    @property
    def conv(self) -> nn.Module:
        """Shared convolution that feeds the norm."""
        return self._fed_by[0]

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the input as the chosen task does.

        Raises:
            RuntimeError: No task is chosen.
        """
        if self.task is None:
            raise RuntimeError(
                "a TaskBatchNorm was called without a task: run the model inside "
                "`with task_norm(model).of(task):`, where the task is one of "
                f"{', '.join(self.norms)}"
            )
        return self.norms[self.task](input)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if not any(key.startswith(f"{prefix}norms.") for key in state_dict):
            for key in [key for key in state_dict if key.startswith(prefix)]:
                value = state_dict.pop(key)
                for task in self.norms:
                    # With load_state_dict(assign=True), the tasks would share one tensor.
                    state_dict[f"{prefix}norms.{task}.{key[len(prefix) :]}"] = value.clone()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class TaskNorm:
    """All norms of a module that have one batch norm a task.

    Args:
        module: Module after :func:`convert_task_norm`, or one that holds such a module.

    Attributes:
        norms: Norms of the module, by name.

    Raises:
        ValueError: The module has no such norm, or norms of different tasks.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms = {n: m for n, m in module.named_modules() if isinstance(m, TaskBatchNorm)}
        found = {tuple(norm.norms) for norm in self.norms.values()}
        if not found:
            raise ValueError(
                f"{type(module).__name__} has no task-specific norm; call convert_task_norm first"
            )
        if len(found) > 1:
            raise ValueError(f"{type(module).__name__} has norms of different tasks: {found}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(next(iter(self.norms.values())).norms)

    @contextmanager
    def of(self, task: str) -> Iterator[None]:
        """Choose the norms of a task for the forward passes inside.

        Activation checkpointing runs parts of the forward pass again in the backward pass, which
        therefore belongs inside, too.

        Args:
            task: Name of the task.

        Raises:
            ValueError: No task has that name.
        """
        if task not in self.tasks:
            raise ValueError(f"no norm is of the task {task!r}; the tasks are {self.tasks}")
        before = {name: norm.task for name, norm in self.norms.items()}
        try:
            for norm in self.norms.values():
                norm.task = task
            yield
        finally:
            for name, norm in self.norms.items():
                norm.task = before[name]


def task_norm(module: nn.Module) -> TaskNorm:
    """Find the task-specific norms of a module.

    Args:
        module: Module after :func:`convert_task_norm`, or one that holds such a module.

    Raises:
        ValueError: The module has no such norm, or norms of different tasks.
    """
    return TaskNorm(module)


def convert_task_norm(
    module: nn.Module, tasks: Sequence[str], run: Callable[[nn.Module], Any]
) -> dict[str, str]:
    """Replace the batch norms behind shared convolutions by one batch norm a task, in place.

    A convolution and a norm are a pair if one dry pass hands the output of the convolution to that
    norm alone, and the norm gets nothing else. Norms of no pair stay as they are, and a warning
    names them. An optimizer has to be built afterwards, since the parameters are new.

    Args:
        module: Shared part of the model, such as its backbone.
        tasks: Names of the tasks.
        run: Function that runs the module once on any input. The module is in evaluation mode
            then, without gradients, so that no statistics change.

    Returns:
        Name of the norm for the name of each convolution that has one.

    Raises:
        ValueError: A task is missing or named twice, the module has task-specific norms already,
            or no convolution feeds a batch norm.
    """
    if not tasks or isinstance(tasks, str) or len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks must be a list of different names, got {tasks!r}")
    if any(isinstance(part, TaskBatchNorm) for part in module.modules()):
        raise ValueError(f"{type(module).__name__} has task-specific norms already")
    norms = {part: name for name, part in module.named_modules() if isinstance(part, _BatchNorm)}
    names = {part: name for name, part in module.named_modules()}
    pairs = _pairs(module, run)
    if not pairs:
        kinds = sorted({type(part).__name__ for part in names if "Norm" in type(part).__name__})
        raise ValueError(
            f"no convolution of {type(module).__name__} feeds a BatchNorm or SyncBatchNorm, so "
            f"there is none to make task-specific; its norms are {', '.join(kinds) or 'none'}"
        )
    shared = [name for norm, name in norms.items() if norm not in pairs.values()]
    if shared:
        logger.warning(
            "%d of %d batch norms stay shared by the tasks, as no convolution feeds each of them "
            "alone: %s",
            len(shared),
            len(norms),
            ", ".join(shared),
        )
    new = {norm: TaskBatchNorm(norm, tasks, conv) for conv, norm in pairs.items()}
    _replace(module, new)
    return {names[conv]: names[norm] for conv, norm in pairs.items()}


def fold_task_norm(module: nn.Module, task: str) -> nn.Module:
    """Copy a module into a plain network of one task.

    Args:
        module: Module after :func:`convert_task_norm`, or one that holds such a module.
        task: Name of the task.

    Returns:
        A copy with ordinary batch norms, whose parameters are named as before the conversion. A
        model of this package computes that task alone then; of a model of your own, heads of other
        tasks are not to be used.

    Raises:
        ValueError: The module has no task-specific norm, or no task has that name.
    """
    if task not in task_norm(module).tasks:
        raise ValueError(f"no norm is of {task!r}; the tasks are {task_norm(module).tasks}")
    plain = deepcopy(module)
    norms = task_norm(plain).norms.values()
    for norm in norms:  # the copy may hold a TaskNorm, which is to know no other task any more
        norm.norms = nn.ModuleDict({task: norm.norms[task]})
    return _replace(plain, {norm: norm.norms[task] for norm in norms})


def _replace(module: nn.Module, new: Mapping[Any, nn.Module]) -> nn.Module:
    for parent in list(module.modules()):
        # named_children() skips the second name of a module that has two.
        for name, child in parent._modules.items():
            if parent not in new and child in new:
                parent._modules[name] = new[child]
    return new.get(module, module)


def _pairs(module: nn.Module, run: Callable[[nn.Module], Any]) -> dict[nn.Module, _BatchNorm]:
    parts = list(module.modules())
    norms = [part for part in parts if isinstance(part, _BatchNorm)]
    convs = [part for part in parts if part not in norms and _is_convolution(part)]
    watch = _Watch(convs)
    # Detectron2's convolution calls its norm itself: what it returns is not what the norm gets.
    whole = [c for c in convs if not any(isinstance(part, _BatchNorm) for part in c.modules())]
    hooks = [conv.register_forward_hook(watch.after_conv) for conv in whole]
    hooks += [norm.register_forward_pre_hook(watch.before_norm) for norm in norms]
    modes = [(part, part.training) for part in parts]
    try:
        module.eval()
        with torch.no_grad(), watch:
            run(module)
    finally:
        for part, training in modes:
            part.training = training
        for hook in hooks:
            hook.remove()
    return {
        conv: norm
        for conv, norm in watch.met
        if conv is not None and not any((c is conv) != (n is norm) for c, n in watch.met)
    }


def _is_convolution(part: nn.Module) -> bool:
    """Tell a convolution, a deformable one included, by its weight."""
    weight = part._parameters.get("weight")
    return weight is not None and weight.ndim >= 3


class _Watch(TorchFunctionMode):
    """Record which norm gets the output of which convolution.

    Attributes:
        met: Pairs of a convolution and the norm that got its output unchanged, or of None and a
            norm that got anything else, each once.
    """

    def __init__(self, convs: Sequence[nn.Module]) -> None:
        super().__init__()
        self.met: dict[tuple[nn.Module | None, _BatchNorm], None] = {}
        self._by_weight = {id(conv.weight): conv for conv in convs}
        # An output that is changed in place is another one; its version says so.
        self._outputs: Any = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "").startswith("conv") and isinstance(result, Tensor):
            for value in (*args, *(kwargs or {}).values()):
                if id(value) in self._by_weight:
                    self._outputs[result] = (self._by_weight[id(value)], result._version)
        return result

    def after_conv(self, conv: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self._outputs[output] = (conv, output._version)

    def before_norm(self, norm: _BatchNorm, args: tuple[Any, ...]) -> None:
        conv, version = self._outputs.get(args[0], (None, None)) if args else (None, None)
        self.met[conv if conv is not None and args[0]._version == version else None, norm] = None
