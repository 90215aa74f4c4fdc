"""Models for several tasks, of MMDetection's and MMSegmentation's parts."""

from mtl_plugins.mm.models.losses import PartialDiceLoss
from mtl_plugins.mm.models.rgbd import RGBDDataPreprocessor, RGBDResNet
from mtl_plugins.mm.models.semantic_detector import PartialDataPreprocessor, SemanticDetector
from mtl_plugins.mm.models.uoais import (
    HierarchicalMaskHead,
    HierarchicalOcclusionHead,
    UOAISRoIHead,
)

__all__ = [
    "HierarchicalMaskHead",
    "HierarchicalOcclusionHead",
    "PartialDataPreprocessor",
    "PartialDiceLoss",
    "RGBDDataPreprocessor",
    "RGBDResNet",
    "SemanticDetector",
    "UOAISRoIHead",
]
