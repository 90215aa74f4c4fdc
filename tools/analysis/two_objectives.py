"""Run each method on the two objectives of CAGrad's paper (Liu 2021), where the plain sum sticks.

    python tools/analysis/two_objectives.py --methods Sum CAGrad NashMTL --processes 2

The objectives are functions of two coordinates: one steep, narrow valley each for x2 > 0, one bowl
each for x2 <= 0. The Pareto set lies between the bottoms of the bowls, from (-7, -8.4) to
(7, -8.4); a run that ends within TOLERANCE of the set has reached it.

A weighting runs with the aggregator Sum, on losses raised by LIFT, as does MoCo: several methods
need positive losses, and the losses here are above -20. FAMO's authors do the same. DTP and
Achievement are told these losses every WINDOW steps, as the errors that a validation would find.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import product, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import AGGREGATORS
from mtl_plugins.weighting import WEIGHTINGS

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.collections import LineCollection  # noqa: E402
from matplotlib.colors import ListedColormap  # noqa: E402

# Starting points of Nash-MTL (Navon 2022) and FAMO (Liu 2023).
STARTS = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
TASKS = ("first", "second")
SIDES = (1, -1)  # one objective each
FLOOR = 5e-6  # least argument of the logarithm, which makes the ground of a valley flat
LIFT = 21.0
WINDOW = 100  # steps, for methods that go by epochs
ALONE = dict.fromkeys(TASKS, LIFT - 20.0)  # least value of a raised loss
OPTIONS = {
    "DWA": {"window": WINDOW},
    "FAMO": {"weight_decay": 0.0},  # as FAMO's authors set it for this problem
    "DTP": {"best": ALONE},
    "Achievement": {"potential": ALONE},
}
PARETO_X1, PARETO_X2 = 7.0, -8.39  # the set bends from -8.35 in the middle to -8.43 at its ends
TOLERANCE = 0.1
KEPT = 500  # points kept of a trajectory
EXTENT = 11.0  # half the width of a panel
COLUMNS = 6  # most panels in a row
TIME = ListedColormap(matplotlib.colormaps["plasma"](np.linspace(0, 0.85, 256)))  # no yellow


def objective(x1: float, x2: float, side: int) -> tuple[float, float, float]:
    """Compute a loss and its derivatives, which are those from below where x2 = 0.

    The first loss has side 1, the second side -1: mirror images of each other in x1.
    """
    if x2 > 0:
        bend = math.tanh(x2)
        distance = (x1 + 7 * side) / 2 - side * bend
        inverse = 1 / distance if abs(distance) > FLOOR else 0.0
        by_x1, by_x2 = inverse / 2, -side * inverse * (1 - bend**2)
        value = math.log(max(abs(distance), FLOOR)) + 6
    else:
        by_x1, by_x2 = (x1 - 7 * side) / 5, (x2 + 8) / 50
        value = ((x1 - 7 * side) ** 2 + (x2 + 8) ** 2 / 10) / 10 - 20
    fade = math.tanh(abs(x2) / 2)
    by_fade = math.copysign(1 - fade**2, x2 or -1.0) / 2
    return value * fade, by_x1 * fade, by_x2 * fade + value * by_fade


class Objectives(torch.autograd.Function):
    """Both losses, ``[2]``, of coordinates ``[1, 2]``: one operation, since every call costs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ((x1, x2),) = x.tolist()
        rows = x.new_tensor([objective(x1, x2, side) for side in SIDES])
        ctx.jacobian = rows[:, 1:]
        return rows[:, 0].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad[None] @ ctx.jacobian


def is_optimal(point: Sequence[float]) -> bool:
    x1, x2 = point
    beyond = max(abs(x1) - PARETO_X1, 0.0)
    return math.hypot(beyond, x2 - PARETO_X2) <= TOLERANCE


def descend(
    method: str,
    start: Sequence[float],
    steps: int,
    lr: float,
    scale: float = 1.0,
    **options: float,
) -> np.ndarray:
    """Train the coordinates with Adam.

    Args:
        method: Name of an aggregator or a weighting.
        start: Coordinates to start from.
        steps: Number of steps.
        lr: Learning rate of Adam.
        scale: Factor of the first loss.
        **options: Arguments of the method.

    Returns:
        Trajectory, ``[at most KEPT + 2, 2]``.
    """
    torch.manual_seed(0)
    # The coordinates are a matrix, since GradNorm looks for a matrix.
    x = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = torch.optim.Adam([x], lr=lr, fused=True)
    cfg = {"type": method} | OPTIONS.get(method, {}) | options
    weighting, aggregator = (None, cfg) if method in AGGREGATORS else (cfg, "Sum")
    backward = MultiTaskBackward([x], aggregator, weighting, tasks=TASKS, total_steps=steps)
    backward.protect(torch.nn.ParameterList([x]))
    by_losses = weighting is not None or backward.aggregator.needs_losses
    lift = LIFT if by_losses else 0.0
    scales = x.new_tensor([scale, 1.0])

    def losses() -> dict[str, Tensor]:
        return dict(zip(TASKS, (Objectives.apply(x) + lift) * scales, strict=True))

    trajectory = x.tolist()
    every = math.ceil(steps / KEPT)
    for step in range(1, steps + 1):
        if backward.in_turn:
            backward.take_in_turn(lambda task: losses()[task], optimizer.step)
        else:
            optimizer.zero_grad()
            backward(losses(), again=losses)
            optimizer.step()
        learner = backward.weighting
        if learner is not None and learner.needs_new_losses:
            with torch.no_grad():
                backward.after_step(losses())
        if learner is not None and learner.needs_indicators and step % WINDOW == 0:
            errors = dict(zip(TASKS, backward.last.losses.tolist(), strict=True))
            backward.tell(errors, errors=TASKS)
        if step % every == 0 or step == steps:
            trajectory += x.tolist()
    return np.array(trajectory)


def usable(names: Sequence[str]) -> list[str]:
    """Choose the methods that train two coordinates without arguments; say why others do not."""
    methods = []
    for name in names:
        try:
            descend(name, STARTS[0], steps=1, lr=0.0)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            print(f"{name} left out: {str(error).split(';')[0]}")
        else:
            methods.append(name)
    return methods


def table_row(name: str, cells: Iterable[str]) -> str:
    return f"{name:<14}" + "".join(f"{cell:>17}" for cell in cells)


def end_of(path: np.ndarray) -> str:
    x1, x2 = path[-1]
    return f"({x1:.2f}, {x2:.2f})" + (" *" if is_optimal(path[-1]) else "  ")


@cache
def landscape() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the sum of the losses on a grid."""
    ticks = np.linspace(-EXTENT, EXTENT, 200)
    x1, x2 = np.meshgrid(ticks, ticks)
    total = np.vectorize(lambda a, b: sum(objective(a, b, side)[0] for side in SIDES))
    return x1, x2, total(x1, x2)


def draw_panel(axis: Axes, method: str, paths: Sequence[np.ndarray]) -> LineCollection:
    axis.contour(*landscape(), levels=18, colors="0.8", linewidths=0.5, linestyles="-")
    axis.plot([-PARETO_X1, PARETO_X1], [PARETO_X2] * 2, color="0.45", linewidth=5)
    for path in paths:
        line = LineCollection(
            np.stack([path[:-1], path[1:]], axis=1), cmap=TIME, linewidths=1.8, capstyle="round"
        )
        line.set(array=np.linspace(0, 1, len(path) - 1), clim=(0, 1))
        axis.add_collection(line)
        axis.plot(*path[0], "o", color="black", markersize=4)
        colour = "gold" if is_optimal(path[-1]) else "white"
        axis.plot(*path[-1], "*", color=colour, markeredgecolor="black", markersize=9)
    reached = sum(is_optimal(path[-1]) for path in paths)
    axis.set_title(f"{method}  {reached}/{len(paths)}", fontsize=10)
    return line


def draw(trajectories: dict[str, list[np.ndarray]], out: Path) -> None:
    rows = math.ceil(len(trajectories) / COLUMNS)
    columns = math.ceil(len(trajectories) / rows)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.3 * columns + 0.5, 2.45 * rows + 0.5),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (method, paths) in zip(axes.flat, trajectories.items(), strict=False):
        line = draw_panel(axis, method, paths)
        axis.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), aspect="equal")
    for axis in axes.flat[len(trajectories) :]:
        axis.set_axis_off()
    colours = figure.colorbar(line, ax=axes, ticks=[0, 1], shrink=0.4, aspect=30, pad=0.01)
    colours.ax.set_yticklabels(["start", "end"])
    figure.savefig(out, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    everything = [*AGGREGATORS, *WEIGHTINGS]
    parser.add_argument("--methods", nargs="+", default=everything, choices=everything)
    parser.add_argument("--steps", type=int, default=35_000)
    parser.add_argument("--lr", type=float, default=1e-3, help="of Adam")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, default=Path("two_objectives.png"), help="PNG, or directory for it"
    )
    args = parser.parse_args()
    out = args.out if args.out.suffix == ".png" else args.out / "two_objectives.png"
    out.parent.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)
    methods = usable(args.methods)
    if not methods:
        raise SystemExit("no method is left")
    pairs = zip(*product(methods, STARTS), strict=True)
    trajectories = {}
    print(table_row("from", (f"({x1:g}, {x2:g})  " for x1, x2 in STARTS)))
    with ProcessPoolExecutor(
        args.processes, get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        paths = pool.map(descend, *pairs, repeat(args.steps), repeat(args.lr))
        for method in methods:
            trajectories[method] = [next(paths) for _ in STARTS]
            print(table_row(method, map(end_of, trajectories[method])), flush=True)
    print(f"* within {TOLERANCE:g} of the Pareto set")
    draw(trajectories, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
