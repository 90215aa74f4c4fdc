"""Visualizers for the predictions of several tasks."""
