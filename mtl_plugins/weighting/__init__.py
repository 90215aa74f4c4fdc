"""Loss weightings: from the losses of the tasks to their factors.

To add one: a file here with a subclass of :class:`Weighting` (of :class:`LearnedWeighting` if it
learns a number a task), its config in ``configs/_base_/mtl`` and its test. From outside:
``WEIGHTINGS["Mine"] = Mine``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mtl_plugins.registry import KINDS, build, find_methods
from mtl_plugins.weighting.base import LearnedWeighting, Weighting

WEIGHTINGS: dict[str, type[Weighting]] = find_methods(
    __name__,
    __path__,
    Weighting,  # type: ignore[type-abstract]
)
KINDS["weighting"] = WEIGHTINGS
globals().update(WEIGHTINGS)

if TYPE_CHECKING:
    # Names that the modules define, such as FAMO, can be imported from here.
    def __getattr__(name: str) -> Any: ...


def build_weighting(cfg: str | Mapping[str, Any] | Weighting) -> Weighting:
    """Build a weighting from its name or from ``dict(type=name, **arguments)``.

    Raises:
        KeyError: No weighting has that name.
        TypeError: The weighting does not take an argument.
    """
    return build(WEIGHTINGS, cfg, "weighting", Weighting)


__all__ = ["WEIGHTINGS", "LearnedWeighting", "Weighting", "build_weighting"]
__all__ += list(WEIGHTINGS)
