"""Ways to take a step: what is measured, and what becomes of it in ``.grad``.

To add one: a file with a subclass of :class:`Route`, and a line in :meth:`Routes.of`.
"""

from mtl_plugins.routes.base import Parts, Route
from mtl_plugins.routes.features import FeatureLevel
from mtl_plugins.routes.one_pass import OnePass
from mtl_plugins.routes.rows import ParameterLevel
from mtl_plugins.routes.weighted import KnownWeights, LowMemory

__all__ = [
    "FeatureLevel",
    "KnownWeights",
    "LowMemory",
    "OnePass",
    "ParameterLevel",
    "Parts",
    "Route",
]
