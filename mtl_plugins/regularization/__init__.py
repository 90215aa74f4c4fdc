"""Regularisers: terms of the loss that are made of the gradients of the tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl_plugins.registry import KINDS, build
from mtl_plugins.regularization.base import Regularizer
from mtl_plugins.regularization.cosreg import CosReg
from mtl_plugins.regularization.penalty import Penalty

REGULARIZERS: dict[str, type[Regularizer]] = {cls.__name__: cls for cls in (CosReg,)}
KINDS["regularizer"] = REGULARIZERS


def build_regularizer(cfg: str | Mapping[str, Any] | Regularizer) -> Regularizer:
    """Builds a regulariser from its name or from ``dict(type=name, **arguments)``.

    Raises:
        KeyError: No regulariser of that name.
        TypeError: An argument that the regulariser does not take.
    """
    return build(REGULARIZERS, cfg, "regularizer", Regularizer)


__all__ = ["REGULARIZERS", "CosReg", "Penalty", "Regularizer", "build_regularizer"]
