"""Data sets whose images lack some labels, or have depth and hidden objects."""

from mtl_plugins.mm.datasets.amodal import AmodalCOCO, MetaGraspNetDataset
from mtl_plugins.mm.datasets.partial import BDD100KDataset, PartialDataset

__all__ = ["AmodalCOCO", "BDD100KDataset", "MetaGraspNetDataset", "PartialDataset"]
