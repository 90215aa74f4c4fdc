"""Draw how the tasks of some runs got on with each other, in a picture and a page that explains it.

    python tools/analysis/plot_interference.py work_dirs/RUN [work_dirs/RUN ...] --baseline sum

The scalars are read from the files that TaskInterferenceHook wrote: MMEngine's own
``<timestamp>/vis_data/scalars.json``, or Detectron2's ``metrics.json``. The page stands beside the
picture, has everything in it, and can be sent to somebody as it is.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mtl_plugins.compare.figures import COLOURS, smooth, svg
from mtl_plugins.compare.logs import Log, LogError

Curve = tuple[np.ndarray, np.ndarray]  # iterations, values; NaN where a value was not finite
Curves = dict[str, Curve]  # curve of each scalar, by name


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
STYLES = (
    *("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5))),
    *((0, (10, 2)), (0, (4, 1, 1, 1, 1, 1)), (0, (1, 3))),
)


def names_of(panel: Panel, names: Iterable[str]) -> list[str]:
    """Choose the scalars that belong into a panel."""
    several = panel.scalars.endswith("/")
    return [n for n in names if n == panel.scalars or several and n.startswith(panel.scalars)]


# --- reading --------------------------------------------------------------------------------------


def labels(runs: Sequence[Path]) -> list[str]:
    """Name the runs by their folders, with as many folders above as tell the runs apart.

    Raises:
        SystemExit: A run is given twice.
    """
    parts = [Path(os.path.abspath(run)).parts for run in runs]
    found = []
    for run, own in zip(runs, parts, strict=True):
        if parts.count(own) > 1:
            raise SystemExit(f"RUN: {run} is given twice")
        ends = (own[-length:] for length in range(1, len(own) + 1))
        end = next(e for e in ends if sum(other[-len(e) :] == e for other in parts) == 1)
        found.append(str(Path(*end)))
    return found


def read_curves(run: Path) -> Curves:
    """Read the curve of every scalar of the hook, through all resumes of the run.

    Raises:
        SystemExit: There is no log, or the hook wrote nothing to it.
    """
    try:
        points = Log(run).training
    except LogError as error:
        raise SystemExit(str(error)) from error
    curves = {}
    for name in [name for panel in PANELS for name in names_of(panel, points)]:
        curve = sorted(points[name].items())
        steps, values = np.array(curve, dtype=float).reshape(-1, 2).T
        there = np.isfinite(values)
        if there.any():
            curves[name] = steps.astype(int), np.where(there, values, np.nan)
    if not curves:
        raise SystemExit(
            f"{run}: no mtl/ scalars in it; add TaskInterferenceHook to custom_hooks "
            "(in Detectron2, set MTL.MONITOR.INTERVAL)"
        )
    return curves


def span(curves: Curves) -> tuple[int, int]:
    """Find the first and the last iteration."""
    steps = np.concatenate([steps for steps, _ in curves.values()])
    return int(steps.min()), int(steps.max())


# --- numbers --------------------------------------------------------------------------------------


def relative(curve: Curve, baseline: Curve, ratio: bool) -> Curve:
    """Take the difference of a curve from the smoothed baseline, or the ratio of the two.

    The baseline is interpolated between two of its values; outside of their range is a gap.
    """
    steps, values = curve
    smoothed = smooth(baseline[1])
    there = np.isfinite(smoothed)
    reference = np.interp(steps, baseline[0][there], smoothed[there], left=np.nan, right=np.nan)
    if not ratio:
        return steps, values - reference
    return steps, values / np.where(reference == 0.0, np.nan, reference)


def last_tenth(curves: Iterable[Curve]) -> float:
    """Take the mean over the last tenth of each curve, NaN if there is no finite value."""
    ends = [values[-max(1, len(values) // 10) :] for _, values in curves]
    there = [value for end in ends for value in end if np.isfinite(value)]
    return float(np.mean(there)) if there else float("nan")


# --- the picture ----------------------------------------------------------------------------------


def colours(count: int) -> Sequence[Any]:
    """Choose a colour for each run: distinct up to ten runs, a colour scale beyond."""
    if count <= len(COLOURS):
        return COLOURS[:count]
    scale = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.95, count))
    return [matplotlib.colors.to_hex(colour) for colour in scale]


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


def thin(curve: Curve) -> Curve:
    """Thin a smooth curve to a few hundred points, the last point among them."""
    every = -(-len(curve[0]) // 200)
    start = (len(curve[0]) - 1) % every
    return curve[0][start::every], curve[1][start::every]


def alone(values: np.ndarray) -> np.ndarray:
    """Find the values with a gap on both sides, which no line shows."""
    there = np.pad(np.isfinite(values), 1)
    return there[1:-1] & ~there[:-2] & ~there[2:]


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


# --- the page -------------------------------------------------------------------------------------

CSS = """
body { font: 16px/1.5 sans-serif; color: #222; background: #fff }
body { max-width: 90rem; margin: 2rem auto; padding: 0 1rem }
svg { width: 100%; height: auto }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: left }
th { white-space: nowrap }
.numbers td, .numbers th + th { text-align: right; white-space: nowrap }
td { font-variant-numeric: tabular-nums }
small { color: #666; font-size: .8rem }
dt { font-weight: bold }
dd { margin: 0 0 .6rem 0; max-width: 50rem }
"""


def table(kind: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Make a table whose first row and column are headings."""
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    for first, *others in rows:
        lines.append(f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in others)}</tr>")
    return f'<div class="wide"><table class="{kind}">' + "\n".join(lines) + "</table></div>"


def measures_of(runs: Mapping[str, Curves]) -> dict[str, list[str]]:
    """Group the scalars by line of the table: a measure, a task's loss or weight, all angles."""
    measures: dict[str, list[str]] = {}
    names = dict.fromkeys(name for curves in runs.values() for name in curves)
    for panel in panels_of(runs):
        for name in names_of(panel, names):
            task = "" if panel is ANGLES else name.removeprefix(panel.scalars)
            measures.setdefault(f"{panel.title}: {task}" if task else panel.title, []).append(name)
    return measures


def page(
    figure: Figure,
    runs: Mapping[str, Curves],
    folders: Mapping[str, Path],
    baseline: str | None = None,
) -> str:
    """Make a page of HTML without further files: runs, picture, numbers and how to read them.

    Args:
        figure: Picture that ``draw`` returned.
        runs: Curves of each run.
        folders: Work directory of each run.
        baseline: Name of the run that the other runs are compared with.
    """
    head = []
    about = []
    for colour, (run, curves) in zip(colours(len(runs)), runs.items(), strict=True):
        square = f'<span style="color:{colour}">&#9632;</span>'
        head.append(f"{square} {escape(run)}{' (baseline)' * (run == baseline)}")
        about.append([head[-1], escape(str(folders[run])), "{} – {}".format(*span(curves))])

    numbers = []
    for measure, names in measures_of(runs).items():
        means = {run: last_tenth(c[n] for n in names if n in c) for run, c in runs.items()}
        cells = ["–" if np.isnan(mean) else f"{mean:#.4g}" for mean in means.values()]
        if baseline is not None:
            for i, (run, mean) in enumerate(means.items()):
                if run != baseline and np.isfinite(difference := mean - means[baseline]):
                    cells[i] += f" <small>({difference:+#.3g})</small>"
        numbers.append([escape(measure), *cells])

    reading = []
    for panel in panels_of(runs):
        drawn = ""
        if baseline is not None and panel is not ANGLES:
            drawn = (
                f" Drawn {'divided by' if panel.ratio else 'minus'} that of {escape(baseline)}, "
                f"which is the dashed line at {'1' if panel.ratio else '0'}."
                if is_relative(panel, runs, baseline)
                else f" Drawn as it is, because {escape(baseline)} lacks some of it."
            )
        reading.append(f"<dt>{panel.title}</dt><dd>{panel.reading}{drawn}</dd>")

    title = "How the tasks get on with each other"
    against = "" if baseline is None else f", in brackets the difference from {escape(baseline)}"
    parts = [
        f"<h1>{title}</h1>",
        "<p>Several tasks train one network, and each pulls at it with a gradient of its own. "
        "This is how far they agreed, and what the method made of it.</p>",
        "<h2>Runs</h2>",
        table("runs", ["run", "folder", "iterations"], about),
        "<h2>Over the training</h2>",
        "<p>Lines are moving averages over a tenth of the training. Where there are not too many, "
        "what was logged is pale behind them.</p>",
        f'<div class="wide">{svg(figure)}</div>',
        f"<h2>At the end</h2><p>Means over the last tenth of each run{against}.</p>",
        table("numbers", ["measure", *head], numbers),
        f"<h2>How to read this</h2><dl>{''.join(reading)}</dl>",
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{CSS}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="work directories")
    parser.add_argument(
        "--baseline", metavar="NAME", help="the run to draw the others relative to, by its name"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("interference.png"),
        help="PNG to write; the page goes beside it, as .html (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    if args.out.suffix.lower() != ".png":
        raise SystemExit(f"--out: expected a name that ends in .png, got {str(args.out)!r}")
    folders = dict(zip(labels(args.runs), args.runs, strict=True))
    if args.baseline is not None and args.baseline not in folders:
        names = ", ".join(repr(name) for name in folders)
        raise SystemExit(f"--baseline: no run is called {args.baseline!r}; valid are {names}")
    runs = {name: read_curves(folder) for name, folder in folders.items()}
    if args.baseline is not None:
        first, last = span(runs[args.baseline])
        for name, (start, end) in {name: span(curves) for name, curves in runs.items()}.items():
            if end < first or last < start:
                raise SystemExit(
                    f"--baseline: {args.baseline!r} has the iterations {first} to {last} and "
                    f"{name!r} {start} to {end}; none are common to both"
                )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure = draw(runs, args.out, args.baseline)
    html = args.out.with_suffix(".html")
    html.write_text(page(figure, runs, folders, args.baseline), encoding="utf-8")
    print(f"wrote {args.out} and {html}")


if __name__ == "__main__":
    main()
