"""Batch samplers: tasks allocated to examples, sources mixed in a ratio."""

from mtl_plugins.mm.samplers.allocation import ISTABatchSampler, STABatchSampler
from mtl_plugins.mm.samplers.source_ratio import SourceRatioBatchSampler

__all__ = ["ISTABatchSampler", "STABatchSampler", "SourceRatioBatchSampler"]
