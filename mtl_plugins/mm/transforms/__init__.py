"""Transforms for images that lack some labels, that have depth, hidden objects or dense labels."""

from mtl_plugins.mm.transforms.amodal import LoadAmodalAnnotations, LoadDepth, PackAmodalInputs
from mtl_plugins.mm.transforms.dense import LoadMultiTask, PackMultiTaskInputs
from mtl_plugins.mm.transforms.dense_geometry import (
    MTPad,
    MTRandomCrop,
    MTRandomFlip,
    MTRandomScaleCrop,
    MTResize,
    MTRotate,
)
from mtl_plugins.mm.transforms.partial import LoadPartialAnnotations, PackPartialInputs

__all__ = [
    "LoadAmodalAnnotations",
    "LoadDepth",
    "LoadMultiTask",
    "LoadPartialAnnotations",
    "MTPad",
    "MTRandomCrop",
    "MTRandomFlip",
    "MTRandomScaleCrop",
    "MTResize",
    "MTRotate",
    "PackAmodalInputs",
    "PackMultiTaskInputs",
    "PackPartialInputs",
]
