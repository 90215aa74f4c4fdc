"""Metrics for images that lack some labels, for hidden objects, and of dense prediction."""

from mtl_plugins.mm.evaluation.amodal import AmodalMetric
from mtl_plugins.mm.evaluation.dense import DenseDepthMetric, DenseIoUMetric, NormalMetric
from mtl_plugins.mm.evaluation.dense_binary import EdgeMetric, SaliencyMetric
from mtl_plugins.mm.evaluation.partial import PartialCocoMetric, PartialSemSegMetric

__all__ = [
    "AmodalMetric",
    "DenseDepthMetric",
    "DenseIoUMetric",
    "EdgeMetric",
    "NormalMetric",
    "PartialCocoMetric",
    "PartialSemSegMetric",
    "SaliencyMetric",
]
