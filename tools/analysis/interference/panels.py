"""Panels of the picture, and the colours of the runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from mtl_plugins.compare.figures import COLOURS


class Panel(NamedTuple):
    """Panel of the picture: its scalars, its labels and how to read it."""

    scalars: str  # a name, or the start of names that end in a task
    title: str
    axis: str
    reading: str
    ratio: bool = False  # compare by the ratio to the baseline, not by the difference


CURVES = (
    Panel(
        "mtl/gds",
        "Gradient direction similarity (GDS)",
        "mean cosine",
        "The cosine of the angle between the gradients of two tasks, averaged over all pairs, from "
        "−1 to 1: high means that a step for one task helps the others too, 0 that they do not "
        "care, below 0 that it harms them.",
    ),
    Panel(
        "mtl/gms",
        "Gradient magnitude similarity (GMS)",
        "mean similarity of lengths",
        "How alike the lengths of the task gradients are, averaged over all pairs, from 0 to 1: "
        "at 1 all tasks pull equally hard, near 0 one of them drowns the others.",
    ),
    Panel(
        "mtl/fd",
        "Feature disentanglement (FD)",
        "mean entropy",
        "How the tasks share the features, as the mean entropy over their locations, from 0 to "
        "log T for T tasks (0.69 for two): at 0 each location matters to one task only and the "
        "tasks keep out of each other's way, at log T every location matters to all of them "
        "equally.",
    ),
    Panel(
        "mtl/loss/",
        "Task losses",
        "loss",
        "The loss of each task, before any weight: lower is better, and tasks are compared with "
        "themselves in another run, not with each other.",
        ratio=True,
    ),
    Panel(
        "mtl/weight/",
        "Task weights",
        "weight",
        "The factor with which the gradient of each task enters the update: high means that the "
        "method listens to this task, and what counts is a task's share, as some methods scale "
        "all weights.",
        ratio=True,
    ),
)
ANGLES = Panel(
    "mtl/angle/",
    "Angles between task gradients",
    "density per degree",
    "How often which angle was seen between the gradients of two tasks, all pairs and iterations "
    "together, from 0 to 180 degrees: mass right of the line at 90 is conflict, mass left of it "
    "agreement.",
)
PANELS = (*CURVES, ANGLES)
TOP = "top_channels"
PRIORITIES = Panel(
    f"mtl/{TOP}/",
    "Channels by the task that comes first",
    "share of channels",
    "The share of the channels behind shared convolutions in which each task has the highest "
    "connection strength (paper D fig. 4): a task that takes nearly all of them rules the network, "
    "and shares that stay where they are show that priorities are kept.",
)
STYLES = (
    *("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5))),
    *((0, (10, 2)), (0, (4, 1, 1, 1, 1, 1)), (0, (1, 3))),
)


def names_of(panel: Panel, names: Iterable[str]) -> list[str]:
    """Choose the scalars that belong into a panel."""
    several = panel.scalars.endswith("/")
    return [n for n in names if n == panel.scalars or several and n.startswith(panel.scalars)]


def colours(count: int) -> Sequence[Any]:
    """Choose a colour for each run: distinct up to ten runs, a colour scale beyond."""
    if count <= len(COLOURS):
        return COLOURS[:count]
    scale = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.95, count))
    return [matplotlib.colors.to_hex(colour) for colour in scale]
