"""Models for several tasks, of MMDetection's and MMSegmentation's parts."""

from mtl_plugins.mm.models.cross_stitch import CrossStitchBackbone, CrossStitchSegNet
from mtl_plugins.mm.models.deeplab_head import DeepLabHead
from mtl_plugins.mm.models.losses import PartialDiceLoss
from mtl_plugins.mm.models.mtan import MTANSegNet
from mtl_plugins.mm.models.mti_net import MTINet
from mtl_plugins.mm.models.rgbd import RGBDDataPreprocessor, RGBDResNet
from mtl_plugins.mm.models.segnet import SegNet
from mtl_plugins.mm.models.semantic_detector import PartialDataPreprocessor, SemanticDetector
from mtl_plugins.mm.models.uoais import (
    HierarchicalMaskHead,
    HierarchicalOcclusionHead,
    UOAISRoIHead,
)

__all__ = [
    "CrossStitchBackbone",
    "CrossStitchSegNet",
    "DeepLabHead",
    "HierarchicalMaskHead",
    "HierarchicalOcclusionHead",
    "MTANSegNet",
    "MTINet",
    "PartialDataPreprocessor",
    "PartialDiceLoss",
    "RGBDDataPreprocessor",
    "RGBDResNet",
    "SegNet",
    "SemanticDetector",
    "UOAISRoIHead",
]
