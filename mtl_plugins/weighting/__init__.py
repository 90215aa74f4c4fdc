"""Loss weightings: from the losses of the tasks to their factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl_plugins.registry import build
from mtl_plugins.weighting.base import Weighting
from mtl_plugins.weighting.fixed import Equal, Fixed

WEIGHTINGS: dict[str, type[Weighting]] = {cls.__name__: cls for cls in (Equal, Fixed)}


def build_weighting(cfg: str | Mapping[str, Any] | Weighting) -> Weighting:
    """Builds a weighting from its name or from ``dict(type=name, **arguments)``.

    Raises:
        KeyError: No weighting of that name.
        TypeError: An argument that the weighting does not take.
    """
    return build(WEIGHTINGS, cfg, "weighting", Weighting)


__all__ = ["WEIGHTINGS", "Equal", "Fixed", "Weighting", "build_weighting"]
