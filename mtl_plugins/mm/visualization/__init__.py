"""Visualizers for the predictions of several tasks."""

from mtl_plugins.mm.visualization.dense import MultiTaskVisualizationHook, MultiTaskVisualizer

__all__ = ["MultiTaskVisualizationHook", "MultiTaskVisualizer"]
