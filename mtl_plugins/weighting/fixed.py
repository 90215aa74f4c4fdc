"""Weights that do not change: one each, or given numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mtl_plugins.registry import suggest
from mtl_plugins.weighting.base import Weighting


class Equal(Weighting):
    """Weight 1 for every loss."""

    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        return dict.fromkeys(tasks, 1.0)


class Fixed(Weighting):
    """Given weights.

    Args:
        weights: Weight of every task, by name.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights: expected a dict by task, got {weights!r}")
        self._weights = dict(weights)

    def check(self, tasks: Collection[str]) -> None:
        for name in self._weights:
            if name not in tasks:
                raise KeyError(
                    f"weighting.weights: no task is called {name!r}; " + suggest(name, tasks)
                )
        self.weights(tasks)

    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        for name in tasks:
            if name not in self._weights:
                raise KeyError(
                    f"weighting.weights: no weight for the task {name!r}; "
                    + suggest(name, self._weights)
                )
        return {name: self._weights[name] for name in tasks}
