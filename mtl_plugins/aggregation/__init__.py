"""Gradient aggregators: from the gradients of the tasks to one update.

To add one: a file here with a subclass of :class:`GramianAggregator` that implements ``solve``, its
config in ``configs/_base_/mtl`` and its test. From outside: ``AGGREGATORS["Mine"] = Mine``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mtl_plugins.aggregation.base import Aggregator, GramianAggregator, RandomAggregator
from mtl_plugins.registry import KINDS, build, find_methods

AGGREGATORS: dict[str, type[Aggregator]] = find_methods(
    __name__,
    __path__,
    Aggregator,  # type: ignore[type-abstract]
)
KINDS["aggregator"] = AGGREGATORS
globals().update(AGGREGATORS)

if TYPE_CHECKING:
    # Names that the modules define, such as PCGrad, can be imported from here.
    def __getattr__(name: str) -> Any: ...


def build_aggregator(cfg: str | Mapping[str, Any] | Aggregator) -> Aggregator:
    """Build an aggregator from its name or from ``dict(type=name, **arguments)``.

    Examples:
        >>> build_aggregator("PCGrad").scale
        'sum'
        >>> build_aggregator(dict(type="CAGrad", c=0.5)).c
        0.5

    Raises:
        KeyError: No aggregator has that name.
        TypeError: The aggregator does not take an argument.
    """
    return build(AGGREGATORS, cfg, "aggregator", Aggregator)


__all__ = ["AGGREGATORS", "Aggregator", "GramianAggregator", "RandomAggregator", "build_aggregator"]
__all__ += list(AGGREGATORS)
