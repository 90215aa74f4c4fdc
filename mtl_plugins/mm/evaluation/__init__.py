"""Metrics for images that are labelled for some of the tasks."""

from mtl_plugins.mm.evaluation.partial import PartialCocoMetric, PartialSemSegMetric

__all__ = ["PartialCocoMetric", "PartialSemSegMetric"]
