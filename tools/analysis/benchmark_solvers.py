"""Time the solvers of our aggregators beside TorchJD's for the same method.

Both libraries get the same Gramians, in single precision on the CPU, as in a training step. There
are two kinds: of random gradients, nearly orthogonal, and of gradients that all conflict. The calls
of a turn follow each other, with warm caches; a training step sweeps the caches in between, and a
solver of either library then takes about twice as long.
"""

import argparse
import warnings
from collections.abc import Callable
from itertools import cycle

import torch
import torchjd.aggregation as torchjd
from timing import median_seconds
from torch import Tensor

from mtl_plugins.aggregation import AGGREGATORS, GramianAggregator, build_aggregator
from mtl_plugins.gradients import gramian_of

KINDS = ("random", "conflicting")
# Aggregators that have a solver here and in TorchJD.
METHODS = [
    name
    for name, cls in AGGREGATORS.items()
    if cls.needs_gradients
    and issubclass(cls, GramianAggregator)
    and (name == "NashMTL" or hasattr(torchjd, f"{name}Weighting"))
]
TASKS = (2, 3, 7, 16)
WIDTH = 1000
TURN = 5e-3  # seconds: dozens of calls of a fast solver, one call of a slow solver
SLOWEST = 3e-4  # seconds, the limit for each of our methods at 7 tasks
GAIN = {"CAGrad": 10.0, "NashMTL": 10.0}  # speed-up wanted over TorchJD, which calls cvxpy


def make_jacobian(kind: str, tasks: int, rng: torch.Generator) -> Tensor:
    """Draw a Jacobian ``[T, D]``, in single precision."""
    rows = torch.randn(tasks, WIDTH, generator=rng)
    if kind == "conflicting":
        # Cosines near -1 / T, as hostile as T gradients can be without a vanishing sum.
        rows -= 0.9 * rows.mean(dim=0)
    return rows


def theirs(method: str, tasks: int) -> Callable[[Tensor], Tensor]:
    """Build TorchJD's weighting with our options, a function of the Gramian.

    Nash-MTL is one of the Jacobian.
    """
    if method == "NashMTL":
        return torchjd.NashMTL(n_tasks=tasks, max_norm=1.0).weighting
    options = {"CAGrad": {"c": 0.4}, "FairGrad": {"alpha": 2.0}, "GradVac": {"beta": 0.01}}
    return getattr(torchjd, f"{method}Weighting")(**options.get(method, {}))


def on_each(weights: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> Callable[[], Tensor]:
    """Make a function that takes the next of the inputs at each call."""
    remaining = cycle(inputs)
    return lambda: weights(next(remaining))


def measure(method: str, tasks: int, kind: str, rounds: int) -> tuple[float, float]:
    """Measure the median seconds of our solver and of TorchJD's."""
    rng = torch.Generator().manual_seed(tasks)
    jacobians = [make_jacobian(kind, tasks, rng) for _ in range(16)]
    gramians = [gramian_of(jacobian) for jacobian in jacobians]
    inputs = jacobians if method == "NashMTL" else gramians
    calls = {
        "ours": on_each(build_aggregator(method).weights, gramians),
        "theirs": on_each(theirs(method, tasks), inputs),
    }
    seconds = median_seconds(calls, rounds, TURN)
    return seconds["ours"], seconds["theirs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=20, help="turns of each solver, a few milliseconds each"
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*not DPP")  # from cvxpy, at every call of Nash-MTL

    print(f"Gradients: {'':4}" + "".join(f"{kind:^31}" for kind in KINDS))
    print(f"{'method':<10}  {'T':>2}" + f"  {'ours ms':>9} {'TorchJD ms':>10} {'ratio':>7}" * 2)
    seconds: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for method in METHODS:
        for tasks in TASKS:
            pairs = [measure(method, tasks, kind, args.rounds) for kind in KINDS]
            seconds[method, tasks] = pairs
            cells = (f"  {a * 1e3:9.3f} {b * 1e3:10.3f} {b / a:6.1f}x" for a, b in pairs)
            print(f"{method:<10}  {tasks:>2}" + "".join(cells), flush=True)
    print(
        f"Medians; {torch.get_num_threads()} threads. "
        f"TorchJD's Nash-MTL takes the Jacobian (T x {WIDTH}), and starts from its last solution.\n"
    )

    slow = [m for m in METHODS if max(a for a, _ in seconds[m, 7]) > SLOWEST]
    print(f"No solver above {SLOWEST * 1e3:g} ms at 7 tasks: {verdict(slow)}")
    for method, gain in GAIN.items():
        missed = [f"T = {t}" for t in TASKS if min(b / a for a, b in seconds[method, t]) < gain]
        print(f"{method} at least {gain:g} times as fast as TorchJD's: {verdict(missed)}")


def verdict(missed: list[str]) -> str:
    return f"no ({', '.join(missed)})" if missed else "yes"


if __name__ == "__main__":
    main()
