"""Weights that do not change: one each, or given numbers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mtl_plugins.registry import suggest
from mtl_plugins.weighting.base import Weighting


class Equal(Weighting):
    """Every loss has the weight 1."""

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        return dict.fromkeys(losses, 1.0)


class Fixed(Weighting):
    """Given weights.

    Args:
        weights: The weight of every task, by name.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        for name in losses:
            if name not in self._weights:
                raise KeyError(
                    f"weighting.weights: no weight for the task {name!r}; "
                    + suggest(name, self._weights)
                )
        return {name: self._weights[name] for name in losses}
