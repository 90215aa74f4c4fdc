"""Gradient aggregators: from the gradients of the tasks to one update.

To add one: a file with a subclass of :class:`GramianAggregator` that implements ``solve``, and its
class in the table below (or, from outside, ``AGGREGATORS["Mine"] = Mine``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl_plugins.aggregation.aligned_mtl import AlignedMTL
from mtl_plugins.aggregation.base import Aggregator, GramianAggregator, RandomAggregator
from mtl_plugins.aggregation.cagrad import CAGrad
from mtl_plugins.aggregation.constant import Mean, Sum
from mtl_plugins.aggregation.graddrop import GradDrop
from mtl_plugins.aggregation.gradvac import GradVac
from mtl_plugins.aggregation.imtl_g import IMTLG
from mtl_plugins.aggregation.mclgs import MCLGS
from mtl_plugins.aggregation.mgda import MGDA
from mtl_plugins.aggregation.nash_mtl import NashMTL
from mtl_plugins.aggregation.pcgrad import PCGrad
from mtl_plugins.aggregation.rgw import RGW
from mtl_plugins.aggregation.torchjd import TorchJD
from mtl_plugins.aggregation.upgrad import UPGrad
from mtl_plugins.registry import KINDS, build

AGGREGATORS: dict[str, type[Aggregator]] = {
    cls.__name__: cls
    for cls in (
        Sum,
        Mean,
        MGDA,
        PCGrad,
        GradVac,
        GradDrop,
        RGW,
        CAGrad,
        NashMTL,
        AlignedMTL,
        IMTLG,
        MCLGS,
        UPGrad,
        TorchJD,
    )
}
KINDS["aggregator"] = AGGREGATORS


def build_aggregator(cfg: str | Mapping[str, Any] | Aggregator) -> Aggregator:
    """Builds an aggregator from its name or from ``dict(type=name, **arguments)``.

    Examples:
        >>> build_aggregator("PCGrad").scale
        'sum'
        >>> build_aggregator(dict(type="CAGrad", c=0.5)).c
        0.5

    Raises:
        KeyError: No aggregator of that name.
        TypeError: An argument that the aggregator does not take.
    """
    return build(AGGREGATORS, cfg, "aggregator", Aggregator)


__all__ = ["AGGREGATORS", "Aggregator", "GramianAggregator", "RandomAggregator", "build_aggregator"]
__all__ += list(AGGREGATORS)
