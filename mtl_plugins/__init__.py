"""Multi-task optimisation for the detection and segmentation frameworks you already train with."""

from mtl_plugins.backward import MultiTaskBackward

__version__ = "0.1.0"

__all__ = ["MultiTaskBackward", "__version__"]
