"""Data sets of dense prediction: several labels at every pixel of an image."""

from mtl_plugins.mm.datasets.dense.base import DenseDataset, Files
from mtl_plugins.mm.datasets.dense.cityscapes import CityscapesDenseDataset
from mtl_plugins.mm.datasets.dense.mtan import MTANCityscapesDataset, MTANNYUv2Dataset
from mtl_plugins.mm.datasets.dense.nyud import NYUDMTDataset
from mtl_plugins.mm.datasets.dense.pascal import PASCALMTDataset

__all__ = [
    "CityscapesDenseDataset",
    "DenseDataset",
    "Files",
    "MTANCityscapesDataset",
    "MTANNYUv2Dataset",
    "NYUDMTDataset",
    "PASCALMTDataset",
]
