"""Scores of a multi-task model."""

from __future__ import annotations
