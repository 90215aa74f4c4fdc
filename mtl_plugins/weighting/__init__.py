"""Loss weightings: from the losses of the tasks to their factors.

To add one: a file with a subclass of :class:`Weighting` (of :class:`LearnedWeighting` if it
learns a number a task), and its class in the table below (or, from outside,
``WEIGHTINGS["Mine"] = Mine``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl_plugins.registry import KINDS, build
from mtl_plugins.weighting.base import LearnedWeighting, Weighting
from mtl_plugins.weighting.dwa import DWA
from mtl_plugins.weighting.famo import FAMO
from mtl_plugins.weighting.fixed import Equal, Fixed
from mtl_plugins.weighting.gradnorm import GradNorm
from mtl_plugins.weighting.imtl_l import IMTLL
from mtl_plugins.weighting.rlw import RLW
from mtl_plugins.weighting.uncertainty import Uncertainty

WEIGHTINGS: dict[str, type[Weighting]] = {
    cls.__name__: cls for cls in (Equal, Fixed, Uncertainty, GradNorm, IMTLL, DWA, RLW, FAMO)
}
KINDS["weighting"] = WEIGHTINGS


def build_weighting(cfg: str | Mapping[str, Any] | Weighting) -> Weighting:
    """Builds a weighting from its name or from ``dict(type=name, **arguments)``.

    Raises:
        KeyError: No weighting of that name.
        TypeError: An argument that the weighting does not take.
    """
    return build(WEIGHTINGS, cfg, "weighting", Weighting)


__all__ = ["WEIGHTINGS", "LearnedWeighting", "Weighting", "build_weighting"]
__all__ += list(WEIGHTINGS)
