"""Pictures of the report: curves with bands over seeds, and predictions."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from mtl_plugins.compare.results import Comparison

Array = NDArray[np.float64]
# Petroff's ten colours, told apart with any kind of colour vision (arXiv 2107.02270).
COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
TITLES = {
    "mtl/gds": "direction similarity (GDS)",
    "mtl/gms": "magnitude similarity (GMS)",
    "mtl/fd": "feature disentanglement (FD)",
}


def band(curves: Sequence[Mapping[int, float]]) -> tuple[Array, Array, Array]:
    """Average curves over the iterations that all of them have.

    Returns:
        Iterations, means, and standard errors of the means (0 for one curve), ``[N]`` each.
    """
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = np.array([[curve[s] for s in steps] for curve in curves], dtype=float)
    values = values.reshape(len(curves), len(steps))
    error = np.zeros(len(steps))
    if len(curves) > 1:
        error = values.std(axis=0, ddof=1) / np.sqrt(len(curves))
    return np.array(steps, dtype=float), values.mean(axis=0) if len(curves) else np.zeros(0), error


def smooth(values: Array) -> Array:
    """Average over a moving tenth of the curve (paper C section 5.1), less at the ends.

    A gap stays a gap; the values beside a gap are averages of the finite values.
    """
    window = np.ones(len(values) // 10 // 2 * 2 + 1)
    there = np.isfinite(values)
    total = np.convolve(np.where(there, values, 0.0), window, "same")
    return np.where(there, total / np.maximum(np.convolve(there, window, "same"), 1.0), np.nan)


def panels(comparison: Comparison) -> list[str]:
    """List the scalars that are drawn, in order."""
    names: dict[str, None] = {}
    validations: dict[str, None] = {}
    for result in comparison.results:
        if result.log is not None and result.done and not result.run.task:
            names |= dict.fromkeys(result.log.training)
            validations |= dict.fromkeys(
                n for n, points in result.log.metrics.items() if len(points) > 1
            )
    wanted = [*TITLES, *(n for n in names if n.startswith(("mtl/loss/", "mtl/weight/")))]
    columns = [c.name for c in comparison.columns]
    shown = [n for n in wanted if n in names]
    return shown + [n for n in columns if n in validations or _several(comparison, n)]


def _several(comparison: Comparison, name: str) -> bool:
    logs = [r.log for r in comparison.results if r.log is not None and r.done]
    return any(len(log.training.get(name, ())) > 1 for log in logs)


def curves(comparison: Comparison) -> Figure | None:
    """Draw a panel for each scalar, with the mean over seeds and a band of a standard error."""
    names = panels(comparison)
    if not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows + 0.4), layout="constrained")
    lines = {}
    for number, name in enumerate(names, 1):
        axis = figure.add_subplot(rows, columns, number)
        for place, method in enumerate(comparison.methods):
            found = [c for r in comparison.of(method) if r.done and (c := r.curve(name))]
            if not found:
                continue
            steps, mean, error = band(found)
            colour = COLOURS[place % len(COLOURS)]
            style = "-" if place < len(COLOURS) else "--"
            mean, error = smooth(mean), smooth(error)
            (lines[method],) = axis.plot(steps, mean, style, color=colour, linewidth=1.5)
            axis.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
        title = re.sub(r"^mtl/(loss|weight)/(.*)", r"\1 of \2", name)
        axis.set_title(TITLES.get(name, title), fontsize=10)
        axis.set_xlabel("iteration", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    legend = figure.legend(
        lines.values(), lines, loc="outside upper center", ncols=6, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def svg(figure: Figure) -> str:
    """Make an element of a page from a figure, with text as text."""
    buffer = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtl"}):
        figure.savefig(buffer, format="svg", dpi=110, metadata=nothing)
    content = buffer.getvalue()
    return content[content.index("<svg") :]


def predictions(comparison: Comparison) -> dict[str, dict[str, str]]:
    """Find the drawn predictions of the methods on the same images.

    Returns:
        By image and method, a data URI of a small JPEG.
    """
    found: dict[str, dict[str, str]] = {}
    for method in comparison.methods:
        for result in comparison.of(method):
            for path in sorted((result.run.path / "pictures").rglob("*")):
                if path.suffix in (".jpg", ".png") and method not in found.get(path.name, ()):
                    found.setdefault(path.name, {})[method] = _embedded(path)
    return found


def _embedded(path: object) -> str:
    with Image.open(str(path)) as image:
        small = image.convert("RGB")
        small.thumbnail((480, 480))
        buffer = BytesIO()
        small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
