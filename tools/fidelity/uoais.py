"""Train a tiny UOAIS with the methods of paper C, at both levels, and put its tables beside.

    python tools/fidelity/uoais.py --work-dir work_dirs/uoais

Drawn scenes in MetaGraspNet's layout. For each seed the sum trains first; every method goes on from
there, so that masks and boxes are worth measuring in short trainings.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from statistics import fmean

sys.path.append(str(Path(__file__).parents[1]))

from dataset_converters.metagraspnet import main as convert  # noqa: E402
from fidelity.in_forks import train_all  # noqa: E402
from fidelity.judging import Claim, judge, schedule, write  # noqa: E402
from fidelity.published import C_TABLE_1, C_TABLE_3  # noqa: E402
from make_demo_data import main as draw  # noqa: E402

from mtl_plugins.compare.command import conclude  # noqa: E402
from mtl_plugins.compare.conflicts import rankings  # noqa: E402
from mtl_plugins.compare.experiments import load  # noqa: E402
from mtl_plugins.compare.plan import BASELINE, plan  # noqa: E402
from mtl_plugins.compare.results import Comparison  # noqa: E402
from mtl_plugins.compare.statistics import estimate  # noqa: E402

CONFIG = str(Path(__file__).with_name("configs") / "uoais_tiny.py")
TASKS = {"bbox": "box", "visible": "visible", "amodal": "amodal"}
COLUMNS = [f"coco/{of}_{what}={t}:high" for of, t in TASKS.items() for what in ("mAP", "mAR")]
LEVELS = ("pcgrad", "gradvac", "rgw", "mgda", "cagrad", "aligned_mtl", "imtl", "cosreg")
"""Methods of C Table 2, at the level of the parameters and, with ``+feature``, of the features; the
first level of the last one takes ten times as long as the sum, and is left out by default."""
OTHERS = ("graddrop", "uncertainty", "rlw", "famo", "dwa")
HELPED, HURT = ("mgda", "aligned_mtl"), ("gradvac", "rgw", "imtl")
"""Methods that the level of the features helps and hurts in C Table 2."""


def draw_data(folder: Path, train: int, val: int) -> None:
    """Draw scenes and convert them, and tell the config where they are."""
    os.environ["METAGRASPNET_ROOT"] = str(folder / "scenes")
    os.environ["METAGRASPNET_DERIVED"] = str(folder / "derived")
    size = ["--train", str(train), "--val", str(val), "--size", "160", "120"]
    draw(["--layout", "metagraspnet", "--out", os.environ["METAGRASPNET_ROOT"], *size])
    convert([os.environ["METAGRASPNET_ROOT"], "--out", os.environ["METAGRASPNET_DERIVED"]])


def train(work_dir: Path, methods: list[str], seeds: int, before: int, iters: int) -> Comparison:
    """Train the sum, then go on with each method; return the results of the latter."""
    first = load(CONFIG, [BASELINE], [*schedule(before), "param_scheduler.1.eta_min=5e-4"])
    starts = {}
    for run in plan(first, [], seeds, work_dir / "before"):
        kept = f"default_hooks.checkpoint.interval={before}"
        train_all([replace(run, options=(*run.options, kept))])
        starts[run.seed] = f"load_from={run.path / f'iter_{before}.pth'}"
    second = load(CONFIG, [BASELINE, *methods], schedule(iters))
    runs = plan(second, methods, seeds, work_dir)
    runs = [replace(run, options=(*run.options, starts[run.seed])) for run in runs]
    train_all(runs)
    return conclude(second, runs, COLUMNS, "gain")


def claims(methods: Collection[str]) -> list[Claim]:
    """Return the claims of C Table 2 about the methods that are there at both levels."""
    found = []
    for name in (name for name in LEVELS if {name, f"{name}+feature"} <= {*methods}):
        rows = C_TABLE_1[name], C_TABLE_1[f"{name}+feature"]
        theirs = 100.0 * fmean(b / a - 1.0 for a, b in zip(*rows, strict=True))
        pair = (f"{name}+feature", name)
        if name in HURT:
            found.append(Claim(f"features hurt {name} (C: {theirs:+.1f})", *pair[::-1]))
        else:
            word = "help" if name in HELPED else "like parameters (no claim):"
            found.append(Claim(f"features {word} {name} (C: {theirs:+.1f})", *pair))
    return found


def print_arrows(comparison: Comparison) -> None:
    """Count the arrows against the sum that are those of C Table 1, and how many are by chance."""
    pairs = []
    for method in comparison.methods:
        if method == BASELINE or method not in C_TABLE_1:
            continue
        for number, column in enumerate(comparison.columns):
            theirs = _arrow(C_TABLE_1[method][number] - C_TABLE_1[BASELINE][number])
            ours = _arrow(
                estimate(list(comparison.scores(method, column).values())).mean
                - estimate(list(comparison.scores(BASELINE, column).values())).mean
            )
            pairs.append((ours, theirs))
    same = sum(ours == theirs for ours, theirs in pairs)
    ours, theirs = (Counter(arrows) for arrows in zip(*pairs, strict=True))
    chance = sum(ours[arrow] * theirs[arrow] for arrow in ours) / len(pairs)
    print(f"\nArrows of C Table 1 found here: {same} of {len(pairs)}; by chance {chance:.0f}")


def _arrow(difference: float) -> str:
    return "–" if abs(difference) <= 0.01 else "↑" if difference > 0.0 else "↓"


def print_rankings(comparison: Comparison) -> None:
    """Print the ranking similarity of the three measures, beside C Table 3."""
    print("\nRanking similarity of a measure and a metric, over methods (C Table 3):\n")
    print("| measure | " + " | ".join(c.name.removeprefix("coco/") for c in comparison.columns))
    print("|" + "---|" * (len(comparison.columns) + 1))
    for measure, row in rankings(comparison).items():
        cells = [
            f"{row[c.name]:.2f} ({theirs:.2f})"
            for c, theirs in zip(comparison.columns, C_TABLE_3[measure], strict=True)
        ]
        print(f"| {measure} | " + " | ".join(cells) + " |")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", type=Path, required=True, help="folder of data and runs")
    methods = [*LEVELS[:-1], *OTHERS, *(f"{name}+feature" for name in LEVELS)]
    parser.add_argument("--mtl", nargs="+", default=methods, metavar="NAME", help="methods")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--before", type=int, default=200, help="iterations of the sum, first")
    parser.add_argument("--iters", type=int, default=25, help="iterations of each method")
    parser.add_argument(
        "--images", type=int, nargs=2, default=(96, 24), help="to train and to test"
    )
    args = parser.parse_args(arguments)
    folder = args.work_dir.resolve()
    draw_data(folder / "data", *args.images)
    comparison = train(folder, list(args.mtl), args.seeds, args.before, args.iters)
    words = sys.argv[1:] if arguments is None else arguments
    write(comparison, folder, ["python", "tools/fidelity/uoais.py", *words])
    print_arrows(comparison)
    judge(comparison, claims(comparison.methods))
    print_rankings(comparison)


if __name__ == "__main__":
    main()
