"""Heads of a segmentor for several maps: built from the config, and asked for what they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmengine.model import ModuleDict, ModuleList
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import nn

from mtl_plugins.mm.models.dense_heads import DenseHead, check_loss_name
from mtl_plugins.mm.structures import FIELDS, IGNORED
from mtl_plugins.registry import suggest


def field_of(head: nn.Module) -> str:
    """Return the name of a head's label in :data:`~mtl_plugins.mm.structures.FIELDS`."""
    return head.field if isinstance(head, DenseHead) else "sem_seg"


def has_decoder(head: nn.Module) -> bool:
    """Tell whether a head goes over features, rather than only judging auxiliary predictions."""
    return not isinstance(head, DenseHead) or head.decoder is not None


def loss_names(head: nn.Module) -> list[str]:
    """Return the names of a head's losses; its task is found by the first."""
    if isinstance(head, DenseHead):
        return [head.loss_name]
    losses: Any = head.loss_decode
    losses = losses if isinstance(losses, nn.ModuleList) else [losses]
    return [getattr(one, "loss_name", "loss_") for one in losses]


def check_tasks(heads: Any, auxiliary_heads: Any) -> None:
    """Refuse names that would be lost among the losses' names."""
    for key, given in (("heads", heads), ("auxiliary_heads", auxiliary_heads)):
        if not isinstance(given, Mapping) or (key == "heads" and not given):
            raise ValueError(f"model.{key}: expected dict(task=dict(type=...)), got {given!r}")
    for task in heads:
        if not isinstance(task, str) or "loss" in task or not re.fullmatch(r"\w+", task):
            raise ValueError(
                f"model.heads: {task!r} cannot be a task's name, which stands in the names of the "
                "losses: letters, digits and _, without 'loss'"
            )
    for task in auxiliary_heads:
        if task not in heads:
            raise ValueError(
                f"model.auxiliary_heads: {task!r} is none of model.heads; {suggest(task, heads)}"
            )


def build_heads(cfgs: Mapping[str, Any]) -> ModuleDict:
    """Build the head of each task.

    Raises:
        ValueError: A config is wrong, or two heads predict the same.
    """
    heads = ModuleDict({task: _build(f"model.heads.{task}", cfg) for task, cfg in cfgs.items()})
    fields = {task: field_of(head) for task, head in heads.items()}
    for task, field in fields.items():
        same = [other for other in fields if fields[other] == field]
        if len(same) > 1:
            raise ValueError(
                f"model.heads.{task}: the heads {same} all predict {FIELDS[field].prediction!r}; "
                "keep one, and put others into model.auxiliary_heads"
            )
    return heads


def build_auxiliary_heads(heads: ModuleDict, cfgs: Mapping[str, Any]) -> ModuleDict:
    """Build the auxiliary heads of each task, a list that may be empty.

    Args:
        heads: Heads of the tasks.
        cfgs: Config, or list of configs, by task; a task may be missing.

    Raises:
        ValueError: A config is wrong, or a head predicts other than the task's.
    """
    found = ModuleDict()
    for task, main in heads.items():
        key = f"model.auxiliary_heads.{task}"
        given = cfgs.get(task, [])
        given = [given] if isinstance(given, Mapping) else given
        found[task] = ModuleList(_build(f"{key}[{i}]", cfg) for i, cfg in enumerate(given))
        for i, head in enumerate(found[task]):
            if field_of(head) != field_of(main):
                raise ValueError(
                    f"{key}[{i}]: {type(head).__name__} predicts {field_of(head)!r}, but "
                    f"model.heads.{task} {field_of(main)!r}"
                )
            if not has_decoder(head):
                raise ValueError(f"{key}[{i}].decoder: an auxiliary head needs one")
    return found


def _build(key: str, cfg: Any) -> nn.Module:
    """Build a head, with errors that begin with its config key."""
    if not isinstance(cfg, Mapping) or "type" not in cfg:
        raise ValueError(f"{key}: expected dict(type=...), got {cfg!r}")
    try:
        head = MODELS.build(dict(cfg))
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        text = re.sub(r"^class `\w+` in \S+: ", "", str(error.args[0] if error.args else error))
        joint = "." if re.match(r"(decoder|loss|num_classes)\b", text) else ": "
        raise ValueError(f"{key}{joint}{text}") from error
    if isinstance(head, BaseCascadeDecodeHead) or not isinstance(head, (BaseDecodeHead, DenseHead)):
        raise ValueError(
            f"{key}.type: {type(head).__name__} is no head that goes over features alone: a decode "
            "head of MMSegmentation (for gt_sem_seg), or DepthHead, NormalHead, EdgeHead, "
            "SaliencyHead, SegmentationHead, PartsHead with a decoder"
        )
    if isinstance(head, BaseDecodeHead):
        if head.ignore_index != IGNORED:
            raise ValueError(
                f"{key}.ignore_index: pixels without a class are {IGNORED}, got {head.ignore_index}"
            )
        check_loss_name(f"{key}.loss_decode.loss_name", *loss_names(head))
    return head
