"""Draws how the tasks of some runs got on: GDS and GMS, task losses and weights over iterations.

    python tools/analysis/plot_interference.py work_dirs/RUN_A work_dirs/RUN_B --out curves.png

Reads what TaskInterferenceHook wrote to MMEngine's own ``vis_data/scalars.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

PANELS = {
    "mtl/gds": "GDS: mean cosine of task gradients",
    "mtl/gms": "GMS: similarity of their magnitudes",
    "mtl/loss/": "task loss",
    "mtl/weight/": "task weight",
}
Curves = dict[str, tuple[list[int], list[float]]]


def scalars_file(run: Path) -> Path:
    """The newest scalar log of a work directory.

    Raises:
        SystemExit: There is none.
    """
    files = sorted(run.glob("*/vis_data/scalars.json"))
    if not files:
        raise SystemExit(f"{run}: no */vis_data/scalars.json in it; is it the work_dir of a run?")
    return files[-1]


def read_curves(run: Path) -> Curves:
    """Steps and values of every scalar of the hook.

    Raises:
        SystemExit: The hook wrote nothing.
    """
    curves: Curves = {}
    for line in scalars_file(run).read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name.startswith("mtl/"):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(value)
    if not curves:
        raise SystemExit(f"{run}: nothing from TaskInterferenceHook; add it to custom_hooks")
    return curves


def smooth(values: Sequence[float]) -> np.ndarray:
    """Moving average over a tenth of the curve (paper C section 5.1), shorter at its ends."""
    reach = max(1, len(values) // 10) // 2
    return np.array(
        [np.mean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]
    )


def draw(runs: dict[str, Curves], out: Path) -> None:
    """Draws one panel a kind of scalar, one colour a run, one line style a task."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(5 * len(PANELS), 3.6))
    for axis, (prefix, title) in zip(axes, PANELS.items(), strict=True):
        for colour, (run, curves) in enumerate(runs.items()):
            names = [name for name in curves if name.startswith(prefix)]
            for style, name in enumerate(names):
                steps, values = curves[name]
                task = name.removeprefix(prefix)
                axis.plot(steps, values, color=f"C{colour}", alpha=0.15)
                axis.plot(
                    steps,
                    smooth(values),
                    color=f"C{colour}",
                    linestyle=("-", "--", ":", "-.")[style % 4],
                    label=f"{run} {task}".strip(),
                )
        axis.set(title=title, xlabel="iteration")
        axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="work directories")
    parser.add_argument("--out", type=Path, default=Path("interference.png"), help="PNG to write")
    args = parser.parse_args()
    draw({run.name: read_curves(run) for run in args.runs}, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
