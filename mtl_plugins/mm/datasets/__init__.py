"""Data sets whose images are labelled for some of the tasks."""

from mtl_plugins.mm.datasets.partial import BDD100KDataset, PartialDataset

__all__ = ["BDD100KDataset", "PartialDataset"]
