"""Batch samplers that allocate tasks to examples, or mix sources in a ratio."""

from mtl_plugins.mm.samplers.allocation import ISTABatchSampler, STABatchSampler
from mtl_plugins.mm.samplers.source_ratio import SourceRatioBatchSampler

__all__ = ["ISTABatchSampler", "STABatchSampler", "SourceRatioBatchSampler"]
