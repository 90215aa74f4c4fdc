"""Picture with one panel for each measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mtl_plugins.compare.figures import smooth

from .curves import Curves, alone, relative, thin
from .panels import ANGLES, CURVES, PANELS, STYLES, Panel, colours, names_of


def is_relative(panel: Panel, runs: Mapping[str, Curves], baseline: str | None) -> bool:
    """Check whether the baseline has every curve that the panel shows of the other runs."""
    return baseline is not None and all(
        name in runs[baseline] for curves in runs.values() for name in names_of(panel, curves)
    )


def tasks_of(runs: Mapping[str, Curves]) -> list[str]:
    """List the tasks that have curves of their own, in the order in which the runs name them."""
    return list(
        dict.fromkeys(
            name.removeprefix(panel.scalars)
            for panel in CURVES
            if panel.scalars.endswith("/")
            for curves in runs.values()
            for name in names_of(panel, curves)
        )
    )


def panels_of(runs: Mapping[str, Curves]) -> list[Panel]:
    """Choose the panels that some run has data for."""
    return [p for p in PANELS if any(names_of(p, curves) for curves in runs.values())]


def draw_curves(axis: Axes, panel: Panel, runs: Mapping[str, Curves], baseline: str | None) -> None:
    """Draw a colour for each run and a line style for each task, over pale logged values."""
    tasks = tasks_of(runs)
    compared = is_relative(panel, runs, baseline)
    pale = []
    many = sum(len(names_of(panel, curves)) for curves in runs.values())
    for colour, (run, curves) in zip(colours(len(runs)), runs.items(), strict=True):
        if compared and run == baseline:
            axis.axhline(1.0 if panel.ratio else 0.0, color=colour, linestyle="--")
            continue
        for name in names_of(panel, curves):
            steps, values = curves[name]
            raw, line = (steps, values), (steps, smooth(values))
            if compared:
                raw, line = (relative(c, runs[baseline][name], panel.ratio) for c in (raw, line))
            task = name.removeprefix(panel.scalars)
            line = thin(line)
            axis.plot(
                *line,
                color=colour,
                linestyle=STYLES[tasks.index(task) % len(STYLES)] if task else "-",
                linewidth=1.6 if many <= 10 else 1.0,
                marker=".",
                markevery=alone(line[1]),
            )
            if many <= 10:  # more than ten pale curves are a fog
                alpha = min(0.3, 0.5 / many)
                pale.append(Line2D(*raw, color=colour, alpha=alpha, linewidth=0.7, zorder=1))
    # Scale the axis to the smoothed curves, however far single values stray.
    axis.margins(y=0.3)
    axis.set_ylim(axis.get_ylim())
    for logged in pale:
        axis.add_line(logged)
    axis.set_rasterization_zorder(1.2)  # one image in each panel keeps the page small
    compare = "ratio to the baseline" if panel.ratio else "difference from the baseline"
    axis.set(title=panel.title, xlabel="iteration", ylabel=compare if compared else panel.axis)


def draw_angles(axis: Axes, runs: Mapping[str, Curves]) -> None:
    """Draw a histogram for each run, of all pairs of tasks together (paper B fig. 1)."""
    for colour, curves in zip(colours(len(runs)), runs.values(), strict=True):
        if names := names_of(ANGLES, curves):
            angles = np.concatenate([curves[name][1] for name in names])
            axis.hist(
                angles[np.isfinite(angles)],
                bins=np.linspace(0.0, 180.0, 37),
                density=True,
                histtype="step",
                linewidth=1.5,
                color=colour,
            )
    axis.axvline(90.0, color="0.3", linestyle="--", linewidth=1.0)
    axis.set(title=ANGLES.title, ylabel=ANGLES.axis, xlim=(0, 180), xticks=range(0, 181, 30))
    axis.set_xlabel("angle in degrees (beyond 90: conflict)")


def legend_of(runs: Iterable[str], tasks: Iterable[str], baseline: str | None) -> list[Line2D]:
    """Make the legend of runs and tasks; an entry without a line is a heading."""
    runs = list(runs)
    entries = [Line2D([], [], linestyle="none", label="Run")]
    for colour, run in zip(colours(len(runs)), runs, strict=True):
        label, style = (f"{run} (baseline)", "--") if run == baseline else (run, "-")
        entries.append(Line2D([], [], color=colour, linestyle=style, label=label))
    lines = [
        Line2D([], [], color="0.2", linestyle=STYLES[i % len(STYLES)], label=task)
        for i, task in enumerate(tasks)
    ]
    return entries + [Line2D([], [], linestyle="none", label="Task")] * bool(lines) + lines


def draw(runs: Mapping[str, Curves], out: Path, baseline: str | None = None) -> Figure:
    """Draw one panel for each measure that some run has, and write the picture as a PNG."""
    panels = panels_of(runs)
    rows = -(-len(panels) // 3)
    columns = -(-len(panels) // rows)
    entries = legend_of(runs, tasks_of(runs), baseline)
    longest = max(len(str(entry.get_label())) for entry in entries)
    figure = Figure(
        figsize=(4.2 * columns + 0.9 + 0.085 * longest, max(3.2 * rows, 0.4 + 0.22 * len(entries))),
        layout="constrained",
    )
    for i, panel in enumerate(panels, 1):
        axis = figure.add_subplot(rows, columns, i)
        if panel is ANGLES:
            draw_angles(axis, runs)
        else:
            draw_curves(axis, panel, runs, baseline)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    legend = figure.legend(
        handles=entries, loc="outside right upper", frameon=False, handlelength=3.5
    )
    for entry, text in zip(entries, legend.get_texts(), strict=True):
        text.set_parse_math(False)  # names of runs may have dollars
        text.set_weight("bold" if entry.get_linestyle() == "None" else "normal")
    figure.savefig(out, dpi=110)
    return figure
