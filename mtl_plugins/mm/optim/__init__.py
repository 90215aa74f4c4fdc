"""Optimizer wrappers that aggregate task gradients."""

from mtl_plugins.mm.optim.optim_wrapper import AmpMTLOptimWrapper, MTLOptimWrapper

__all__ = ["AmpMTLOptimWrapper", "MTLOptimWrapper"]
