"""Heads that train on the examples of their task alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import wraps
from typing import Any, NamedTuple

from mmengine.dist import get_world_size
from torch import Tensor, nn

from mtl_plugins.allocation import BatchTasks, zero
from mtl_plugins.tasks import TaskGroups


class Gate(NamedTuple):
    """A method that computes losses of a head, as MMDetection's detectors call it.

    Attributes:
        owner: Path of the module that has the method.
        method: Its name.
        head: Path of the module whose parameters the losses train.
        losses: The losses that it computes; the task of the first decides.
        inside: The key of its result under which they are, if they are not the result.
    """

    owner: str
    method: str
    head: str
    losses: tuple[str, ...]
    inside: str | None = None


# RPN proposes for all images, and so goes over all: only its losses are about some of them.
GATES = (
    Gate("rpn_head", "loss_by_feat", "rpn_head", ("loss_rpn_cls", "loss_rpn_bbox")),
    Gate("roi_head", "bbox_loss", "roi_head.bbox_head", ("loss_cls", "loss_bbox"), "loss_bbox"),
    Gate("roi_head", "mask_loss", "roi_head.mask_head", ("loss_mask",), "loss_mask"),
    Gate("bbox_head", "loss", "bbox_head", ("loss_cls",)),
    Gate("mask_head", "loss", "mask_head", ("loss_mask",)),
    Gate("semantic_head", "loss", "semantic_head", ("loss_seg",)),
)


class AllocationGates:
    """Lets each head see only the images that have its task.

    The tasks of an image are ``metainfo['tasks']`` of its data sample, where a batch sampler such
    as :class:`~mtl_plugins.mm.samplers.STABatchSampler` puts them; without them nothing changes.
    Features and annotations of the other images do not reach the head, so that it neither computes
    on them nor normalises over them. Where no image has the task, its losses are 0.

    Args:
        model: An MMDetection detector, or one with methods of the same names for its losses.
        groups: Which losses make which task.
    """

    def __init__(self, model: nn.Module, groups: TaskGroups) -> None:
        self._images = BatchTasks()
        self._gated: set[str] = set()
        self._mixed: set[str] = set()  # tasks with a part that cannot be gated
        modules = dict(model.named_modules())
        for gate in GATES:
            owner, head = modules.get(gate.owner), modules.get(gate.head)
            task = groups.task_of(gate.losses[0])
            method = getattr(owner, gate.method, None)
            if method is None or head is None or task is None:
                continue
            if _is_separate(owner, method):
                setattr(owner, gate.method, self._gate(method, head, gate, task))
                self._gated.add(task)
            else:
                self._mixed.add(task)
        if hasattr(model, "trains"):  # it looks at each image itself
            model.trains = self._trains
            names = [pattern.rstrip("*") for pattern in model.optional_losses]
            self._gated |= {task for task in map(groups.task_of, names) if task}
        self._groups = groups
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        samples = kwargs.get("data_samples", args[1] if len(args) > 1 else None)
        self._images.note(getattr(s, "metainfo", {}).get("tasks") for s in samples or ())
        for task in self._images.names() - (self._gated - self._mixed):
            raise ValueError(
                f"train_dataloader.batch_sampler: {type(model).__name__} has no head that trains "
                f"the task {task!r} on some of the images; those that can do have the tasks "
                f"{sorted(self._gated - self._mixed)}"
            )

    def _trains(self, sample: Any, loss: str) -> bool:
        """Whether an image trains the losses with names that begin with ``loss``."""
        tasks = sample.metainfo.get("tasks")
        return tasks is None or self._groups.task_of(loss) in tasks

    def _gate(
        self, method: Callable[..., Any], head: nn.Module, gate: Gate, task: str
    ) -> Callable[..., Any]:
        @wraps(method)
        def gated(*args: Any, **kwargs: Any) -> Any:
            chosen = self._images.chosen(task) if head.training else None
            if chosen is None:
                return method(*args, **kwargs)
            if chosen:
                some = {name: select(value, chosen) for name, value in kwargs.items()}
                return method(*(select(value, chosen) for value in args), **some)
            if gate.method == "loss" and get_world_size() > 1:
                # Others may have the task, and heads such as FCOS's count over the ranks.
                values, samples = args
                nobody = copy(samples[0])
                nobody.gt_instances = nobody.gt_instances[:0]
                return scaled(method(select(values, [0]), [nobody]), 0.0)
            losses = dict.fromkeys(gate.losses, zero(head))
            return {gate.inside: losses, "bbox_feats": None} if gate.inside else losses

        return gated


def _is_separate(owner: nn.Module, method: Callable[..., Any]) -> bool:
    """Whether no other method needs this one to have gone over the same images."""
    if "stage" in inspect.signature(method).parameters:
        return False  # a cascade: each stage refines the boxes of the one before
    return not getattr(owner, "share_roi_extractor", False)


def scaled(losses: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Losses, each a tensor or a list with one a level, times a factor."""
    return {
        name: [factor * each for each in value] if isinstance(value, list) else factor * value
        for name, value in losses.items()
    }


def select(value: Any, chosen: Sequence[int]) -> Any:
    """The part of an argument that is about some images.

    Args:
        value: Feature maps, perhaps in nested lists, or a list with one entry an image. Anything
            else is returned as it is.
        chosen: Indices of the images.
    """
    if not isinstance(value, (list, tuple)) or not value:
        return value
    if isinstance(value[0], (list, tuple, Tensor)):
        parts = [v[chosen] if isinstance(v, Tensor) else select(v, chosen) for v in value]
        return type(value)(parts)
    return [value[i] for i in chosen]
