"""Transforms for images that lack some labels, or that have depth and hidden objects."""

from mtl_plugins.mm.transforms.amodal import LoadAmodalAnnotations, LoadDepth, PackAmodalInputs
from mtl_plugins.mm.transforms.partial import LoadPartialAnnotations, PackPartialInputs

__all__ = [
    "LoadAmodalAnnotations",
    "LoadDepth",
    "LoadPartialAnnotations",
    "PackAmodalInputs",
    "PackPartialInputs",
]
