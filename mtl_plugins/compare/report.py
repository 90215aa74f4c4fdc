"""The report: a page in one file, Markdown, and the numbers as JSON and CSV."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any

import mtl_plugins
from mtl_plugins.compare.conflicts import conflicts, rankings
from mtl_plugins.compare.figures import curves, predictions, svg
from mtl_plugins.compare.results import Comparison
from mtl_plugins.compare.runs import write_text
from mtl_plugins.compare.tables import Table, tables
from mtl_plugins.compare.verdict import findings, sentences

PACKAGES = (
    *("torch", "torchvision", "mmengine", "onedl-mmengine", "mmcv", "onedl-mmcv", "mmdet"),
    *("onedl-mmdetection", "mmsegmentation", "onedl-mmsegmentation", "detectron2", "numpy"),
)
CSS = """
body { font: 16px/1.5 sans-serif; color: #222; background: #fff; max-width: 75rem;
  margin: 2rem auto; padding: 0 1rem }
svg, .pictures img { max-width: 100%; height: auto }
.wide { overflow-x: auto }
.pictures th, .pictures td { text-align: left }
table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0 }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left }
.verdict { background: #f3f6fa; border-left: .3rem solid #3f90da; padding: .6rem 1rem }
.problems { background: #fdf3ee; border-left: .3rem solid #bd1f01; padding: .6rem 1rem }
.note { color: #555; font-size: .9rem; max-width: 55rem }
pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; font-size: .8rem }
.problems pre { background: none; margin: 0; white-space: pre-wrap }
"""


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    found = {"python": platform.python_version(), "mtl-plugins": mtl_plugins.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_report(comparison: Comparison, folder: Path, command: str) -> None:
    """Write ``report.html``, ``report.md``, ``results.json`` and ``results.csv``.

    Args:
        comparison: Results.
        folder: Folder to write to.
        command: Command line that made them.

    Raises:
        OSError: The folder cannot be written to.
    """
    write_text(folder / "results.json", json.dumps(numbers(comparison, command), indent=1))
    write_text(folder / "results.csv", as_csv(comparison))
    write_text(folder / "report.md", markdown(comparison, command))
    write_text(folder / "report.html", page(comparison, command))


def numbers(comparison: Comparison, command: str) -> dict[str, Any]:
    """Return everything that the report says as numbers; what is not finite is null."""
    return _finite(
        {
            "command": command,
            "versions": versions(),
            "columns": [c._asdict() for c in comparison.columns],
            "runs": [
                {
                    "method": r.run.name,
                    "seed": r.run.seed,
                    "state": r.status.state,
                    "problem": r.problem,
                    "metrics": r.metrics,
                    "seconds_per_iteration": r.seconds_per_iteration,
                    "memory_mib": r.memory[0],
                    "memory_of": r.memory[1],
                    "seconds": r.status.seconds,
                    "commands": r.status.commands,
                }
                for r in comparison.results
            ],
            "delta_m": {
                method: comparison.scores(method, comparison.delta)
                for method in comparison.methods
                if comparison.delta
            },
            "against_sum": [
                {"method": f.method, "metric": f.column.name, **f.difference._asdict()}
                | {"p_holm": f.adjusted, "differs": f.differs, "seeds_needed": f.needed}
                for f in findings(comparison)
            ],
            "conflicts": {
                method: {f"{a}|{b}": c._asdict() for (a, b), c in found.items()}
                for method in comparison.methods
                if (found := conflicts(comparison.of(method)))
            },
            "ranking_similarity": rankings(comparison),
            "verdict": sentences(comparison),
        }
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_csv(comparison: Comparison) -> str:
    """Return a line for each run, with all of its metrics."""
    names = sorted({name for r in comparison.results for name in r.metrics})
    out = StringIO()
    writer = csv.writer(out)
    writer.writerow(["method", "seed", "state", "seconds_per_iteration", "memory_mib", *names])
    for r in comparison.results:
        values = [r.seconds_per_iteration, r.memory[0], *(r.metrics.get(n, "") for n in names)]
        shown = ["" if isinstance(v, float) and math.isnan(v) else v for v in values]
        writer.writerow([r.run.name, r.run.seed, r.status.state, *shown])
    return out.getvalue()


def _commands(comparison: Comparison, command: str) -> list[str]:
    """List the commands to repeat the comparison, and the first seed of each method."""
    first = [c for r in comparison.results if r.run.seed == 0 for c in r.status.commands]
    return [command, "", *first]


def markdown(comparison: Comparison, command: str) -> str:
    """Return the report without pictures, in Markdown."""
    parts = ["# Does multi-task optimisation help?", ""]
    parts += [f"- {sentence}" for sentence in sentences(comparison)]
    for table in tables(comparison):
        parts += ["", f"## {table.title}", "", *_markdown_table(table), "", table.note]
    if comparison.problems:
        parts += ["", "## Problems", ""]
        for problem in comparison.problems:
            parts += ["```", problem, "```"]
    known = ", ".join(f"{name} {number}" for name, number in versions().items())
    parts += ["", "## Repeat it", "", known, "", "```bash"]
    return "\n".join([*parts, *_commands(comparison, command), "```", ""])


def _markdown_table(table: Table) -> list[str]:
    rows = [table.head, ["---"] * len(table.head), *table.rows]
    return ["| " + " | ".join(c.replace("|", r"\|") for c in row) + " |" for row in rows]


def page(comparison: Comparison, command: str) -> str:
    """Return the report as a page of HTML without further files."""
    title = "Does multi-task optimisation help?"
    parts = [f"<h1>{title}</h1>", '<div class="verdict">']
    parts += [f"<p>{escape(sentence)}</p>" for sentence in sentences(comparison)] + ["</div>"]
    if comparison.problems:
        parts += ['<div class="problems"><h2>Problems</h2>']
        parts += [f"<pre>{escape(problem)}</pre>" for problem in comparison.problems]
        parts.append("</div>")
    scored, cost, *others = tables(comparison)
    parts += [_html_table(scored), _html_table(cost)]
    if figure := curves(comparison):
        parts.append(
            "<h2>Over the training</h2><p class='note'>Means over seeds, with a band of one "
            "standard error, smoothed over a tenth of the training.</p>"
            f'<div class="wide">{svg(figure)}</div>'
        )
    parts += [_html_table(table) for table in others]
    if pictures := predictions(comparison):
        parts.append("<h2>Predictions on the same images</h2>")
        parts.append(_gallery(pictures, comparison.methods))
    rows = "".join(f"<tr><td>{n}</td><td>{v}</td></tr>" for n, v in versions().items())
    commands = escape("\n".join(_commands(comparison, command)))
    parts.append(f"<h2>Repeat it</h2><pre>{commands}</pre><table>{rows}</table>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{CSS}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "\n".join(
        "<tr>" + "".join(f"<td{_shade(cell)}>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    return (
        f'<h2>{escape(table.title)}</h2><p class="note">{escape(table.note)}</p>'
        f'<div class="wide"><table><tr>{head}</tr>\n{rows}</table></div>'
    )


def _shade(cell: str) -> str:
    """Colour a share of conflicts, so that a matrix is read at a glance."""
    share = cell.split("%")[0]
    if "%" not in cell or not share.isdigit():
        return ""
    return f' style="background: rgba(189, 31, 1, {int(share) / 200:.2f})"'


def _gallery(pictures: Mapping[str, Mapping[str, str]], methods: Sequence[str]) -> str:
    shown = [m for m in methods if any(m in of for of in pictures.values())]
    head = "".join(f"<th>{escape(method)}</th>" for method in shown)
    rows = "\n".join(
        "<tr>"
        + "".join(
            f'<td><img alt="{escape(image)}" src="{of[m]}"></td>' if m in of else "<td></td>"
            for m in shown
        )
        + "</tr>"
        for image, of in pictures.items()
    )
    return f'<div class="wide pictures"><table><tr>{head}</tr>\n{rows}</table></div>'
