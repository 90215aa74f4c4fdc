"""Page of HTML that needs no further files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mtl_plugins.compare.figures import svg

from .curves import Curves, last_tenth
from .panels import ANGLES, colours, names_of
from .picture import is_relative, panels_of
from .reading import span

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
    others: Iterable[tuple[str, str, Figure]] = (),
) -> str:
    """Make a page of HTML without further files: runs, picture, numbers and how to read them.

    Args:
        figure: Picture that ``draw`` returned.
        runs: Curves of each run.
        folders: Work directory of each run.
        baseline: Name of the run that the other runs are compared with.
        others: Title, reading and figure of each further picture.
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

    explained = []
    for panel in panels_of(runs):
        drawn = ""
        if baseline is not None and panel is not ANGLES:
            drawn = (
                f" Drawn {'divided by' if panel.ratio else 'minus'} that of {escape(baseline)}, "
                f"which is the dashed line at {'1' if panel.ratio else '0'}."
                if is_relative(panel, runs, baseline)
                else f" Drawn as it is, because {escape(baseline)} lacks some of it."
            )
        explained.append(f"<dt>{panel.title}</dt><dd>{panel.reading}{drawn}</dd>")

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
        *(
            f'<h2>{name}</h2><p>{reading}</p><div class="wide">{svg(more)}</div>'
            for name, reading, more in others
        ),
        f"<h2>At the end</h2><p>Means over the last tenth of each run{against}.</p>",
        table("numbers", ["measure", *head], numbers),
        f"<h2>How to read this</h2><dl>{''.join(explained)}</dl>",
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{CSS}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
