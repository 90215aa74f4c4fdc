"""Data sets whose images lack some labels, or have depth, hidden objects or dense labels."""

from mtl_plugins.mm.datasets.amodal import AmodalCOCO, MetaGraspNetDataset
from mtl_plugins.mm.datasets.dense import (
    CityscapesDenseDataset,
    DenseDataset,
    MTANCityscapesDataset,
    MTANNYUv2Dataset,
    NYUDMTDataset,
    PASCALMTDataset,
)
from mtl_plugins.mm.datasets.partial import BDD100KDataset, PartialDataset

__all__ = [
    "AmodalCOCO",
    "BDD100KDataset",
    "CityscapesDenseDataset",
    "DenseDataset",
    "MTANCityscapesDataset",
    "MTANNYUv2Dataset",
    "MetaGraspNetDataset",
    "NYUDMTDataset",
    "PASCALMTDataset",
    "PartialDataset",
]
