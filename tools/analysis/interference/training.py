"""Pictures of the training of several tasks, as in paper D: losses, their trends, priorities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mtl_plugins.compare.figures import smooth

from .curves import Curves, correlation_of_trends, last_tenth, thin
from .panels import COLOURS, PRIORITIES, STYLES, colours, names_of

LOSS = "mtl/loss/"


class Picture(NamedTuple):
    """Picture besides the panels: the end of the file's name, title, how to read it, drawing."""

    name: str
    title: str
    reading: str
    draw: Callable[[Mapping[str, Curves], Path], Figure]


def losses_of(curves: Curves) -> dict[str, str]:
    """Return the name of the loss curve of each task."""
    return {name.removeprefix(LOSS): name for name in curves if name.startswith(LOSS)}


def pictures_of(runs: Mapping[str, Curves]) -> list[Picture]:
    """Choose the pictures that some run has data for."""
    tasks = max(len(losses_of(curves)) for curves in runs.values())
    pictures = [LOSSES] * (tasks > 0) + [TRENDS] * (tasks > 1)
    drawn = any(names_of(PRIORITIES, curves) for curves in runs.values())
    return pictures + [FIRST] * drawn


def draw_losses(runs: Mapping[str, Curves], out: Path) -> Figure:
    """Draw each task's loss at the end of each run, and the mean over the tasks (fig. 2)."""
    tasks = list(dict.fromkeys(task for curves in runs.values() for task in losses_of(curves)))
    figure = Figure(figsize=(1.9 * (len(tasks) + 1) + 2.2, 3.4), layout="constrained")
    for i, group in enumerate([*tasks, None]):
        axis = figure.add_subplot(1, len(tasks) + 1, i + 1)
        for x, (colour, curves) in enumerate(zip(colours(len(runs)), runs.values(), strict=True)):
            names = losses_of(curves)
            if group is None and set(names) != set(tasks):
                continue  # a mean over other tasks says nothing
            ends = [last_tenth([curves[n]]) for t, n in names.items() if group in (None, t)]
            if ends:
                axis.bar(x, np.mean(ends), color=colour, width=0.8)
        axis.set_title(
            "mean of the tasks" if group is None else group,
            parse_math=False,
            fontsize="medium",
            fontweight="bold" if group is None else "normal",
        )
        axis.set(xticks=[], xlim=(-0.6, len(runs) - 0.4))
        axis.margins(y=0.1)
        _tidy(axis)
    figure.axes[0].set_ylabel("training loss at the end")
    return _finish(figure, _legend(runs), out)


def draw_trends(runs: Mapping[str, Curves], out: Path) -> Figure:
    """Draw how the losses of each pair of tasks move together over each run (fig. 3)."""
    pairs = list(
        dict.fromkeys(
            pair for curves in runs.values() for pair in combinations(losses_of(curves), 2)
        )
    )
    figure = Figure(figsize=(7.6, 3.8), layout="constrained")
    axis = figure.add_subplot()
    for colour, curves in zip(colours(len(runs)), runs.values(), strict=True):
        for i, (a, b) in enumerate(pairs):
            names = losses_of(curves)
            if a in names and b in names:
                found = correlation_of_trends(curves[names[a]], curves[names[b]])
                axis.plot(
                    *thin(found), color=colour, linestyle=STYLES[i % len(STYLES)], linewidth=1.6
                )
    axis.axhline(0.0, color="0.3", linestyle="--", linewidth=1.0)
    axis.set(xlabel="iteration", ylabel="correlation of the losses", ylim=(-1.05, 1.05))
    _tidy(axis)
    lines = [
        Line2D([], [], color="0.2", linestyle=STYLES[i % len(STYLES)], label=" and ".join(pair))
        for i, pair in enumerate(pairs)
    ]
    return _finish(figure, _legend(runs) + lines, out)


def draw_priorities(runs: Mapping[str, Curves], out: Path) -> Figure:
    """Draw the share of the channels in which each task comes first, over each run (fig. 4)."""
    there = {run: curves for run, curves in runs.items() if names_of(PRIORITIES, curves)}
    tasks = list(
        dict.fromkeys(
            name.removeprefix(PRIORITIES.scalars)
            for curves in there.values()
            for name in names_of(PRIORITIES, curves)
        )
    )
    columns = min(len(there), 3)
    rows = -(-len(there) // columns)
    figure = Figure(figsize=(4.2 * columns + 1.6, 3.2 * rows), layout="constrained")
    colour = dict(zip(tasks, [COLOURS[i % len(COLOURS)] for i in range(len(tasks))], strict=True))
    for i, (run, curves) in enumerate(there.items(), 1):
        axis = figure.add_subplot(rows, columns, i)
        mine = [task for task in tasks if PRIORITIES.scalars + task in curves]
        shares = [curves[PRIORITIES.scalars + task] for task in mine]
        steps = shares[0][0]
        heights = [100.0 * np.interp(steps, s, smooth(v)) for s, v in shares]
        axis.stackplot(steps, heights, colors=[colour[task] for task in mine], linewidth=0.0)
        axis.set_title(run, parse_math=False, fontsize="medium")
        axis.set(xlabel="iteration", ylabel="channels (per cent)", ylim=(0, 100))
        axis.margins(x=0)
        _tidy(axis)
    entries = [
        Line2D([], [], color=colour[task], linewidth=7, label=task) for task in reversed(tasks)
    ]
    return _finish(figure, entries, out)


def _legend(runs: Mapping[str, Curves]) -> list[Line2D]:
    pairs = zip(colours(len(runs)), runs, strict=True)
    return [Line2D([], [], color=colour, linewidth=3, label=run) for colour, run in pairs]


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, axis="y")


def _finish(figure: Figure, entries: list[Line2D], out: Path) -> Figure:
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    legend = figure.legend(
        handles=entries, loc="outside right upper", frameon=False, handlelength=3.0
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # names of runs may have dollars
    figure.savefig(out, dpi=110)
    return figure


LOSSES = Picture(
    "losses",
    "Losses at the end",
    "The training loss of each task, mean over the last tenth of each run, each on a scale of its "
    "own, and the mean of the tasks: a run that is lower in every task has found a better "
    "compromise for all of them (paper D fig. 2).",
    draw_losses,
)
TRENDS = Picture(
    "trends",
    "Do the losses fall together?",
    "The correlation of the smoothed losses of two tasks within a moving fifth of the run: near 1 "
    "both fall (or rise) together, below 0 one rises as the other falls (paper D fig. 3).",
    draw_trends,
)
FIRST = Picture("priorities", PRIORITIES.title, PRIORITIES.reading, draw_priorities)
