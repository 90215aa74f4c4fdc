"""Batch norms of each task's own in a model of the config: the key ``model.task_norm``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mtl_plugins.registry import suggest
from mtl_plugins.task_norm import TaskBatchNorm, TaskNorm, convert_task_norm, task_norm

KEYS = ("modules", "input_shape")


class TaskNorms:
    """The task-specific norms of a model, if it has any.

    Args:
        model: Model whose trunk is converted.
        tasks: Names of the tasks.
        cfg: Value of ``model.task_norm``: None for no such norms, or a dict with ``modules``, the
            paths of the parts with norms to convert (by default backbone and neck), and
            ``input_shape``, the shape of an image for a dry pass (``(3, 64, 64)``).
        trunk: Function that runs the trunk on images ``[N, C, H, W]``.

    Raises:
        TypeError, ValueError: The dict has other keys, a part is not there, no convolution of the
            parts feeds a norm, or the model uses activation checkpointing.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[str],
        cfg: Mapping[str, Any] | None,
        trunk: Callable[[Tensor], Any],
    ) -> None:
        self._norm: TaskNorm | None = None
        if cfg is None:
            return
        if not isinstance(cfg, Mapping):
            raise TypeError(f"model.task_norm: expected a dict or None, got {cfg!r}")
        for key in cfg:
            if key not in KEYS:
                raise ValueError(f"model.task_norm: there is no {key!r}; {suggest(key, KEYS)}")
        shape = cfg.get("input_shape", (3, 64, 64))
        parts = nn.ModuleDict()
        for path in cfg.get("modules") or [n for n in ("backbone", "neck") if hasattr(model, n)]:
            try:
                parts[path.replace(".", "/")] = model.get_submodule(path)
            except AttributeError:
                valid = [name for name, _ in model.named_children()]
                raise ValueError(
                    f"model.task_norm.modules: the model has no {path!r}; {suggest(path, valid)}"
                ) from None
        try:
            convert_task_norm(parts, tasks, lambda _: trunk(torch.zeros(1, *shape)))
        except (ValueError, RuntimeError) as error:
            text = str(error).replace("ModuleDict", " and ".join(parts))
            raise ValueError(f"model.task_norm: {text}") from error
        refuse_checkpointing(model, TaskBatchNorm, "model.task_norm")
        self._norm = task_norm(model)

    def __bool__(self) -> bool:
        return self._norm is not None

    def serve(self, task: str) -> bool:
        """Tell whether passes of a task are possible; after folding they are of one task alone."""
        return self._norm is None or task in self._norm.tasks

    @contextmanager
    def of(self, task: str) -> Iterator[None]:
        """Choose the norms of a task for the forward passes inside, where there are such norms."""
        if self._norm is None:
            yield
        else:
            with self._norm.of(task):
                yield


def refuse_checkpointing(model: nn.Module, kind: type[nn.Module], key: str) -> None:
    """Refuse activation checkpointing around parts that need a task to be chosen.

    Raises:
        ValueError: A module with ``with_cp=True`` holds such a part.
    """
    for name, module in model.named_modules():
        if getattr(module, "with_cp", False) and any(isinstance(m, kind) for m in module.modules()):
            raise ValueError(
                f"{key}: with_cp=True of {name} runs the forward pass again in the backward pass, "
                "when no task is chosen; set it to False"
            )


def refuse_lost_norms(model: nn.Module, keys: Iterable[str]) -> None:
    """Refuse a checkpoint with norms of each task for plain norms, which MMEngine only warns of.

    Args:
        model: Model with the plain norms.
        keys: Names of the checkpoint's weights in the model.

    Raises:
        ValueError: The checkpoint has a norm once a task and the model once.
    """
    parts: dict[str, nn.Module] = dict(model.named_modules())
    for key in keys:
        match = re.match(r"(.+)\.norms\.\w+\.", key)
        if match and isinstance(parts.get(match[1]), _BatchNorm):
            raise ValueError(
                f"model.task_norm: the checkpoint has {match[1]!r} once a task and the config does "
                "not. Take the config in the work directory of the run, or add "
                "model=dict(task_norm=dict())"
            )
