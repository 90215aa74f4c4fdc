"""Parts of a trunk that differ by task: layers of a task's own, and rotations of the features."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtl_plugins.mm.models.task_features import TaskFeatures
from mtl_plugins.mm.models.task_norms import refuse_checkpointing
from mtl_plugins.registry import suggest
from mtl_plugins.rotations import Rotations
from mtl_plugins.task_layers import TaskLayer, TaskLayers, convert_task_layers

PIXELS = 64  # side of the image that shows the features' channels


class OwnLayers:
    """The layers of backbone and neck that each task has for itself, if there are any.

    Args:
        model: Segmentor with ``heads``, ``backbone`` and perhaps ``neck``; its layers are replaced.
        names: Names of the layers in the model.

    Raises:
        ValueError: A name is no layer of backbone or neck.
    """

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        self._layers: TaskLayers | None = None
        self._all = list(model.heads)
        self._chosen: str | None = None
        if not names and not isinstance(names, str):
            return
        for name in [] if isinstance(names, str) else names:
            if not isinstance(name, str) or name.split(".")[0] not in ("backbone", "neck"):
                layers = (
                    n for n, _ in model.named_modules() if n.startswith(("backbone.", "neck."))
                )
                raise ValueError(
                    f"model.task_layers: {name!r} is no layer of backbone or neck; "
                    + suggest(str(name), [n for n in layers if n.count(".") < 3])
                )
        try:
            convert_task_layers(model, names, self._all)
        except ValueError as error:
            raise ValueError(f"model.task_layers: {error}") from error
        refuse_checkpointing(model, TaskLayer, "model.task_layers")
        self._layers = TaskLayers(model)
        # Parts that can compute the features of one task alone.
        self._apart: list[Any] = [part for part in model.modules() if hasattr(part, "only_task")]

    def __bool__(self) -> bool:
        return self._layers is not None

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that a pass is about: all, or the chosen one."""
        return self._all if self._chosen is None else [self._chosen]

    @contextmanager
    def of(self, task: str) -> Iterator[None]:
        """Choose the layers of a task for the forward passes inside, where there are any."""
        if self._layers is None:
            yield
            return
        self._choose(task)
        try:
            with self._layers.of(task):
                yield
        finally:
            self._choose(None)

    def _choose(self, task: str | None) -> None:
        self._chosen = task
        for part in self._apart:
            part.only_task = task

    def alone(self, x: Any) -> Any:
        """Check that features are those of the chosen task alone, and return them.

        Batch norms of the other tasks would see maps that are not theirs.

        Raises:
            ValueError: The trunk has features by task, and computes those of all tasks at once.
        """
        if self and isinstance(x, TaskFeatures) and (len(x.features) > 1 or x.auxiliary):
            raise ValueError(
                "model.task_layers: backbone or neck computes features of all tasks at once, "
                "and each task's layers would change those of the others"
            )
        return x


def rotations_of(model: Any, options: Mapping[str, Any] | None) -> Rotations | None:
    """Build the rotations of the features that the tasks share.

    Args:
        model: Segmentor with ``heads``, ``own_layers``, ``task_norms`` and ``_trunk()``.
        options: Options of the rotations, beside tasks and channels.

    Raises:
        ValueError, TypeError: The options are not valid, or the tasks share no features.
    """
    if options is None:
        return None
    if not isinstance(options, Mapping) or options.keys() - {"size"}:
        raise ValueError(f"model.rotations: expected dict() or dict(size=...), got {options!r}")
    size = options.get("size")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 2):
        raise ValueError(f"model.rotations.size: expected None or an integer from 2, got {size!r}")
    features = None if model.own_layers or model.task_norms else _run(model)
    if features is None or isinstance(features, TaskFeatures):
        raise ValueError(
            "model.rotations: they turn features that the tasks share, and here each task has "
            "features of its own"
        )
    read = _maps_read(model, len(features))
    channels = [z.shape[1] if number in read else None for number, z in enumerate(features)]
    return Rotations(list(model.heads), channels, size)


def _maps_read(model: Any, count: int) -> set[int]:
    """Return the numbers of the feature maps that some head reads."""
    heads = [*model.heads.values(), *(h for some in model.auxiliary_heads.values() for h in some)]
    found: set[int] = set()
    for head in heads:
        indices = getattr(getattr(head, "decoder", head), "in_index", range(count))
        found |= {i % count for i in ([indices] if isinstance(indices, int) else indices)}
    return found


def _run(model: Any) -> TaskFeatures | Sequence[Tensor]:
    """Run the trunk on a black image, in evaluation mode and without a trace."""
    modes = [(part, part.training) for part in model.modules()]
    channels = getattr(model.backbone, "in_channels", 3)
    try:
        model.eval()
        with torch.no_grad():
            return model._trunk(torch.zeros(1, channels, PIXELS, PIXELS))
    finally:
        for part, training in modes:
            part.training = training


def refuse_lost_weights(model: Any, keys: Sequence[str]) -> None:
    """Refuse a checkpoint that has more by task than the model, which MMEngine only warns of.

    Args:
        model: Segmentor.
        keys: Names of the checkpoint's weights in the model.

    Raises:
        ValueError: The checkpoint was written with rotations or task-specific layers, and the model
            has none.
    """
    if model.rotations is None and any(key.startswith("rotations.") for key in keys):
        raise ValueError(
            "model.rotations: the checkpoint has rotations and the config none: its heads would "
            "see features that they do not know. Take the config in the work directory of the run, "
            "or add model=dict(rotations=dict())"
        )
    parts: dict[str, nn.Module] = dict(model.named_modules())
    for key in keys:
        match = re.match(r"(.+)\.copies\.\w+\.", key)
        if match and not isinstance(parts.get(match[1]), TaskLayer):
            raise ValueError(
                f"model.task_layers: the checkpoint has {match[1]!r} once a task and the config "
                "does not. Take the config in the work directory of the run"
            )
