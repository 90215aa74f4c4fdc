"""Metrics for images that lack some labels, and for hidden objects."""

from mtl_plugins.mm.evaluation.amodal import AmodalMetric
from mtl_plugins.mm.evaluation.partial import PartialCocoMetric, PartialSemSegMetric

__all__ = ["AmodalMetric", "PartialCocoMetric", "PartialSemSegMetric"]
