"""Regularisers: terms of the loss that are made of the gradients of the tasks.

To add one: a file here with a subclass of :class:`Regularizer`, its config in
``configs/_base_/mtl`` and its test. From outside: ``REGULARIZERS["Mine"] = Mine``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mtl_plugins.registry import KINDS, build, find_methods
from mtl_plugins.regularization.base import Regularizer
from mtl_plugins.regularization.penalty import Penalty

REGULARIZERS: dict[str, type[Regularizer]] = find_methods(
    __name__,
    __path__,
    Regularizer,  # type: ignore[type-abstract]
)
KINDS["regularizer"] = REGULARIZERS
globals().update(REGULARIZERS)

if TYPE_CHECKING:
    # Names that the modules define, such as CosReg, can be imported from here.
    def __getattr__(name: str) -> Any: ...


def build_regularizer(cfg: str | Mapping[str, Any] | Regularizer) -> Regularizer:
    """Build a regulariser from its name or from ``dict(type=name, **arguments)``.

    Raises:
        KeyError: No regulariser has that name.
        TypeError: The regulariser does not take an argument.
    """
    return build(REGULARIZERS, cfg, "regularizer", Regularizer)


__all__ = ["REGULARIZERS", "Penalty", "Regularizer", "build_regularizer"]
__all__ += list(REGULARIZERS)
