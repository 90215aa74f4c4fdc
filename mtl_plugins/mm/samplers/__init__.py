"""Batch samplers that allocate tasks to examples."""

from mtl_plugins.mm.samplers.allocation import ISTABatchSampler, STABatchSampler

__all__ = ["ISTABatchSampler", "STABatchSampler"]
