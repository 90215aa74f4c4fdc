"""Models for several tasks, of MMDetection's and MMSegmentation's parts."""

from mtl_plugins.mm.models.cross_stitch import CrossStitchBackbone, CrossStitchSegNet
from mtl_plugins.mm.models.deeplab_head import DeepLabHead
from mtl_plugins.mm.models.dense_heads import (
    DenseHead,
    DepthHead,
    EdgeHead,
    NormalHead,
    PartsHead,
    SaliencyHead,
    SegmentationHead,
)
from mtl_plugins.mm.models.dense_losses import BalancedBCELoss, DepthL1Loss, NormalLoss
from mtl_plugins.mm.models.losses import PartialDiceLoss
from mtl_plugins.mm.models.mtan import MTANSegNet
from mtl_plugins.mm.models.mti_net import MTINet
from mtl_plugins.mm.models.multi_task_preprocessor import MultiTaskDataPreProcessor
from mtl_plugins.mm.models.multi_task_segmentor import MultiTaskSegmentor
from mtl_plugins.mm.models.partial_preprocessor import PartialDataPreprocessor
from mtl_plugins.mm.models.rgbd import RGBDDataPreprocessor, RGBDResNet
from mtl_plugins.mm.models.segnet import SegNet
from mtl_plugins.mm.models.semantic_detector import SemanticDetector
from mtl_plugins.mm.models.task_norm_mask_rcnn import TaskNormMaskRCNN
from mtl_plugins.mm.models.uoais import (
    HierarchicalMaskHead,
    HierarchicalOcclusionHead,
    UOAISRoIHead,
)

__all__ = [
    "BalancedBCELoss",
    "CrossStitchBackbone",
    "CrossStitchSegNet",
    "DeepLabHead",
    "DenseHead",
    "DepthHead",
    "DepthL1Loss",
    "EdgeHead",
    "HierarchicalMaskHead",
    "HierarchicalOcclusionHead",
    "MTANSegNet",
    "MTINet",
    "MultiTaskDataPreProcessor",
    "MultiTaskSegmentor",
    "NormalHead",
    "NormalLoss",
    "PartialDataPreprocessor",
    "PartialDiceLoss",
    "PartsHead",
    "RGBDDataPreprocessor",
    "RGBDResNet",
    "SaliencyHead",
    "SegNet",
    "SegmentationHead",
    "SemanticDetector",
    "TaskNormMaskRCNN",
    "UOAISRoIHead",
]
