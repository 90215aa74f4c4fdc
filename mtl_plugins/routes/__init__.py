"""Routes from the losses to ``.grad``: each measures gradients, and applies a choice.

To add one: a file with a subclass of :class:`Route`, and its line in :meth:`Routes.choose`.
"""

from mtl_plugins.aggregation import GramianAggregator
from mtl_plugins.choice import Chooser
from mtl_plugins.routes.base import Parts, Route
from mtl_plugins.routes.features import FeatureLevel
from mtl_plugins.routes.layers import LayersLevel
from mtl_plugins.routes.one_pass import OnePass
from mtl_plugins.routes.rows import ParameterLevel
from mtl_plugins.routes.weighted import KnownWeights, LowMemory


class Routes:
    """The routes of a run.

    Args:
        parts: Parts that the routes work with.
    """

    def __init__(self, parts: Parts) -> None:
        self._one_pass = OnePass(parts)
        self._rows = ParameterLevel(parts)
        self._frugal = LowMemory(parts)
        self._known = KnownWeights(self._frugal)
        cut = parts.representation
        self._features = None if cut is None else FeatureLevel(parts, cut)
        self._layers = None if parts.layers is None else LayersLevel(parts, parts.layers)

    def choose(self, chooser: Chooser, averages: bool) -> Route:
        """Choose the way to take this step.

        Args:
            chooser: Chooser, whose method decides, and whose weights may still hold.
            averages: Whether gradients are averaged over the ranks here, rather than by a wrapper.
        """
        if not chooser.aggregator.needs_gradients:
            self._one_pass.averages = averages
            return self._one_pass
        if self._features is not None:
            return self._features
        if chooser.steps_left:
            return self._known
        if self._layers is not None:
            return self._layers
        self._rows.needs_matrix = not isinstance(chooser.aggregator, GramianAggregator)
        return self._frugal if self._frugal.parts.options.low_memory else self._rows


__all__ = ["Parts", "Route", "Routes"]
