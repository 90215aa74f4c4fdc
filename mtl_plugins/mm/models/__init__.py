"""Models for several tasks, of MMDetection's and MMSegmentation's parts."""

from mtl_plugins.mm.models.losses import PartialDiceLoss
from mtl_plugins.mm.models.semantic_detector import PartialDataPreprocessor, SemanticDetector

__all__ = ["PartialDataPreprocessor", "PartialDiceLoss", "SemanticDetector"]
