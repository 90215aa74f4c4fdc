"""Run the two-objective problem as its authors do, and judge what they publish of its ends.

    python tools/fidelity/pareto.py --out results.json

CAGrad (Liu 2021, fig. 1): three starts. Nash-MTL (Navon 2022, fig. 1) and FAMO (Liu 2023, fig. 1):
five starts, the first loss times 0.1. Adam with a learning rate of 1e-3 in all, and the papers'
100,000 and 35,000 steps; FAMO's has 50,000. ``tools/analysis/two_objectives.py`` runs every
method, with both losses as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

sys.path.append(str(Path(__file__).parents[1]))
from analysis.two_objectives import (  # noqa: E402
    PARETO_X1,
    PARETO_X2,
    SIDES,
    STARTS,
    descend,
    is_optimal,
    objective,
)

from mtl_plugins.aggregation import Sum, build_aggregator  # noqa: E402
from mtl_plugins.aggregation.base import GramianAggregator  # noqa: E402

Point = tuple[float, float]
NEAR = 0.2  # distance at which an end counts as the optimum of the mean


def is_best(point: Point) -> bool:
    """Tell whether the mean of the losses is least at a point."""
    return math.hypot(point[0], point[1] - PARETO_X2) <= NEAR


class Setting(NamedTuple):
    """A published run of the problem.

    Attributes:
        starts: Starting points.
        scale: Factor of the first loss.
        steps: Number of steps.
        methods: Methods of the figure.
        arguments: Arguments of each method.
    """

    starts: Sequence[Point]
    scale: float
    steps: int
    methods: Sequence[str]
    arguments: dict[str, dict[str, float]]


Ends = dict[str, list[Point]]  # ends in a setting, by method


class Claim(NamedTuple):
    """A published sentence, and a test of the ends of a setting."""

    setting: str
    text: str
    check: Callable[[Ends], bool]


SETTINGS = {
    "CAGrad": Setting(
        ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0)),
        1.0,
        100_000,
        ("Sum", "MGDA", "PCGrad", "CAGrad"),
        {"CAGrad": {"c": 0.5}},
    ),
    "Nash-MTL": Setting(
        STARTS, 0.1, 35_000, ("Sum", "PCGrad", "CAGrad", "MGDA", "NashMTL", "FAMO"), {}
    ),
}
FIRST, SECOND = 1.0, -1.0  # sign of x1 where a loss is least


def reached(ends: Sequence[Point]) -> int:
    return sum(map(is_optimal, ends))


def lean(ends: Sequence[Point], to: float) -> bool:
    """Tell whether the ends on the Pareto set are nearer the least of one of the losses."""
    there = [x1 for x1, x2 in ends if is_optimal((x1, x2))]
    return bool(there) and to * fmean(there) > 0.0


def balanced(ends: Sequence[Point]) -> bool:
    """Tell whether all ends are on the middle half of the Pareto set."""
    return all(is_optimal(end) and abs(end[0]) <= PARETO_X1 / 2 for end in ends)


LARGE = ("Sum", "PCGrad", "CAGrad")  # methods that go by the large loss
CLAIMS = (
    Claim(
        "CAGrad", "GD with Adam is stuck from two of three starts", lambda e: reached(e["Sum"]) == 1
    ),
    Claim(
        "CAGrad",
        "MGDA and PCGrad reach the Pareto set",
        lambda e: reached(e["MGDA"]) == reached(e["PCGrad"]) == 3,
    ),
    Claim(
        "CAGrad",
        "only CAGrad reaches the least mean of the losses from all three",
        lambda e: [name for name, ends in e.items() if all(map(is_best, ends))] == ["CAGrad"],
    ),
    Claim(
        "Nash-MTL",
        "GD, PCGrad and CAGrad do not reach the Pareto set from (9, 9)",
        lambda e: not any(is_optimal(e[name][STARTS.index((9.0, 9.0))]) for name in LARGE),
    ),
    Claim(
        "Nash-MTL",
        "where they do, they favour the second loss, which is larger",
        lambda e: all(lean(e[name], SECOND) for name in LARGE),
    ),
    Claim("Nash-MTL", "MGDA favours the first", lambda e: lean(e["MGDA"], FIRST)),
    Claim("Nash-MTL", "Nash-MTL ends are balanced", lambda e: balanced(e["NashMTL"])),
    Claim("Nash-MTL", "GD fails from one of five (FAMO's paper)", lambda e: reached(e["Sum"]) == 4),
    Claim("Nash-MTL", "FAMO's ends are balanced (FAMO's paper)", lambda e: balanced(e["FAMO"])),
)


def walk(aggregator: GramianAggregator, start: Point, steps: int, lr: float, scale: float) -> Point:
    """Return where a method ends with Adam, written out: a tenth of the time of PyTorch's steps."""
    x, mean, square = list(start), [0.0, 0.0], [0.0, 0.0]
    for step in range(1, steps + 1):
        a, b = (objective(x[0], x[1], side)[1:] for side in SIDES)
        a = scale * a[0], scale * a[1]
        if isinstance(aggregator, Sum):
            u = v = 1.0
        else:
            inner = a[0] * b[0] + a[1] * b[1]
            gramian = [[a[0] ** 2 + a[1] ** 2, inner], [inner, b[0] ** 2 + b[1] ** 2]]
            u, v = aggregator.weights(torch.tensor(gramian, dtype=torch.float64)).tolist()
        for i in range(2):
            slope = u * a[i] + v * b[i]
            mean[i] += 0.1 * (slope - mean[i])
            square[i] += 0.001 * (slope**2 - square[i])
            size = math.sqrt(square[i] / (1.0 - 0.999**step)) + 1e-8
            x[i] -= lr * mean[i] / (1.0 - 0.9**step) / size
    return x[0], x[1]


def end_of(name: str, start: Point, setting: Setting, speed: float) -> Point:
    """Return where a method ends in a setting."""
    steps, lr = round(setting.steps / speed), 1e-3 * speed
    if name == "FAMO":  # goes by losses
        x1, x2 = descend(name, start, steps, lr, setting.scale)[-1]
        return float(x1), float(x2)
    torch.manual_seed(0)
    aggregator = build_aggregator({"type": name} | setting.arguments.get(name, {}))
    return walk(aggregator, start, steps, lr, setting.scale)


def ends_of(setting: Setting, speed: float) -> Ends:
    """Run the methods of a setting, and print where each start ends."""
    found: Ends = {}
    print("| method | " + " | ".join(f"from {start}" for start in setting.starts) + " |")
    print("|" + "---|" * (1 + len(setting.starts)))
    for name in setting.methods:
        found[name] = [end_of(name, start, setting, speed) for start in setting.starts]
        cells = (f"({x1:.2f}, {x2:.2f})" + " *" * is_optimal((x1, x2)) for x1, x2 in found[name])
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return found


def print_verdicts(ends: dict[str, Ends]) -> None:
    print()
    for claim in CLAIMS:
        holds = claim.check(ends[claim.setting])
        print(f"{claim.setting}: {claim.text}: {'holds' if holds else 'does not hold'}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speed", type=float, default=1.0, help="larger steps, as many fewer")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ends = {}
    for name, setting in SETTINGS.items():
        print(f"\nAs in the paper of {name}; * on the Pareto set:\n", flush=True)
        ends[name] = ends_of(setting, args.speed)
    print_verdicts(ends)
    args.out.write_text(json.dumps(ends))


if __name__ == "__main__":
    main()
