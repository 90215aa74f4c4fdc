"""Options of the optimizer wrapper, checked in terms of the config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from mtl_plugins import MultiTaskBackward
from mtl_plugins.registry import suggest

OPTIONS = inspect.signature(MultiTaskBackward).parameters.keys() - {"params"}
KEYS = (*OPTIONS, "optional_losses")
"""Keys of the config with which errors of the core begin."""


def check_options(wrapper: type, options: Mapping[str, Any]) -> None:
    """Refuse options that MMEngine's wrapper would, in terms of the config."""
    known = [
        parameter.name
        for cls in wrapper.__mro__
        for parameter in inspect.signature(cls).parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    valid = sorted({*known, *OPTIONS})
    for key in options:
        if key not in valid:
            raise TypeError(f"optim_wrapper: there is no option {key!r}; {suggest(key, valid)}")
    counts = options.get("accumulative_counts", 1)
    if not isinstance(counts, int) or counts < 1:
        raise ValueError(
            f"optim_wrapper.accumulative_counts: expected an integer of at least 1, got {counts!r}"
        )
    clip = options.get("clip_grad")
    if clip is not None:
        _check_clipping(clip)


def _check_clipping(clip: Any) -> None:
    """Refuse arguments by which MMEngine would not clip, or not before the first step."""
    functions: dict[str, Any] = {
        "norm": nn.utils.clip_grad_norm_,
        "value": nn.utils.clip_grad_value_,
    }
    example = "such as dict(max_norm=35) or dict(type='value', clip_value=1.0)"
    if not isinstance(clip, Mapping):
        raise TypeError(f"optim_wrapper.clip_grad: expected a dict {example}, got {clip!r}")
    arguments = dict(clip)
    kind = arguments.pop("type", "norm")
    if kind not in functions:
        raise ValueError(
            f"optim_wrapper.clip_grad.type: expected one of {list(functions)}, got {kind!r}"
        )
    try:
        inspect.signature(functions[kind]).bind([], **arguments)
    except TypeError as error:
        raise TypeError(f"optim_wrapper.clip_grad: {error}; expected a dict {example}") from error
