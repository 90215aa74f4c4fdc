"""Transforms for images that are labelled for some of the tasks."""

from mtl_plugins.mm.transforms.partial import LoadPartialAnnotations, PackPartialInputs

__all__ = ["LoadPartialAnnotations", "PackPartialInputs"]
