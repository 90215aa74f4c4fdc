"""Visualizers for the predictions of several tasks."""

from mtl_plugins.mm.visualization.dense import MultiTaskVisualizer

__all__ = ["MultiTaskVisualizer"]
