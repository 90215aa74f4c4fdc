"""Procedurally drawn scenes, and one module for each data set layout."""
