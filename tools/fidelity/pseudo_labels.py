"""Train on pseudo labels that are partly wrong, and measure their conflicts (paper A, Table 4).

    python tools/fidelity/pseudo_labels.py --work-dir work_dirs/pseudo_labels

FCOS and semantic FPN, drawn scenes in BDD100K's layout. The teacher is right, or labels a share of
the images as if they were the next one. A supposes that a teacher's errors are gradient conflicts,
which MCLGS holds back where other methods follow them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from mmengine.config import Config

sys.path.append(str(Path(__file__).parents[1]))

from analysis.allocation_angles import config_for, gradients  # noqa: E402
from fidelity.in_forks import train_all  # noqa: E402
from fidelity.judging import Claim, Row, judge, runs_of, schedule, write  # noqa: E402
from fidelity.teachers import draw_scenes, teach  # noqa: E402

from mtl_plugins.compare.command import conclude  # noqa: E402
from mtl_plugins.compare.experiments import load  # noqa: E402
from mtl_plugins.compare.plan import BASELINE  # noqa: E402
from mtl_plugins.compare.statistics import estimate, paired_difference  # noqa: E402
from mtl_plugins.step import Step  # noqa: E402

CONFIG = str(Path(__file__).with_name("configs") / "bdd100k_tiny.py")
COLUMNS = ["coco/bbox_mAP", "seg/mIoU"]
METHODS = ("mclgs", "pcgrad", "mgda", "cagrad")
CLAIMS = (
    Claim("MCLGS over the sum", "mclgs"),
    *(Claim(f"MCLGS over {name}", "mclgs", name) for name in METHODS[1:]),
    *(Claim(f"the sum over {name}", BASELINE, name) for name in METHODS[1:]),
)
SHARES = (0.0, 0.5, 1.0)
BY_SOURCE = {
    f"{source}_{task}": f"loss_{source}_{task}_*"
    for source in ("gt", "pseudo")
    for task in ("det", "seg")
}


def cosines(
    wrong: float, folder: Path, checkpoints: Sequence[Path], steps: int
) -> list[list[float]]:
    """Measure the mean cosine of labels and pseudo labels.

    Args:
        wrong: Share of wrong labels.
        folder: Folder of the scenes.
        checkpoints: Weights of the model, one a seed.
        steps: Batches to measure, without training.

    Returns:
        Cosines of detection and of segmentation, one a seed.
    """
    teach(folder, wrong)
    found: list[list[float]] = [[], []]
    for seed, checkpoint in enumerate(checkpoints):
        cfg = Config.fromfile(CONFIG)
        cfg.optim_wrapper.tasks = BY_SOURCE
        cfg.randomness = {"seed": seed}
        with TemporaryDirectory() as work_dir:
            cfg = config_for(cfg, None, work_dir)
            done = [step for step, _ in gradients(cfg, str(checkpoint), steps)]
        for values, task in zip(found, ("det", "seg"), strict=True):
            values.append(fmean(_cosines(done, f"gt_{task}", f"pseudo_{task}")))
    return found


def _cosines(steps: Sequence[Step], first: str, second: str) -> Iterator[float]:
    """Compute the cosine of two tasks' gradients in each step that has both."""
    for step in steps:
        lengths = dict(zip(step.tasks, step.gramian.diagonal().sqrt().tolist(), strict=True))
        if lengths.get(first) and lengths.get(second):
            i, j = step.tasks.index(first), step.tasks.index(second)
            yield float(step.gramian[i, j]) / (lengths[first] * lengths[second])


def print_cosines(found: dict[float, list[list[float]]]) -> None:
    """Print the cosines by share of wrong labels, and whether errors lower them."""
    print("\nCosine of the gradients of labels and pseudo labels:\n")
    print("| wrong labels | detection | segmentation |\n|---|---|---|")
    for wrong, both in found.items():
        print(f"| {wrong:.0%} | " + " | ".join(f"{estimate(v):.3f}" for v in both) + " |")
    for task, name in enumerate(("detection", "segmentation")):
        right, *_, worst = (both[task] for both in found.values())
        fall = paired_difference(right, worst, step=0.0)
        negative = "and conflict" if fmean(worst) < 0.0 else "but do not conflict on average"
        verdict = "holds" if fall.p <= 0.05 and fall.mean > 0.0 else "not decidable here"
        print(
            f"{name}: wrong labels agree less with the right ones: {verdict} "
            f"(by {fall.mean:.3f} ± {fall.standard_error:.3f}, p = {fall.p:.2g}), {negative}"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", type=Path, required=True, help="folder of data and runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iters", type=int, default=100)
    parser.add_argument(
        "--wrong", type=float, default=0.5, help="share of wrong labels in training"
    )
    parser.add_argument("--steps", type=int, default=10, help="batches to measure cosines on")
    parser.add_argument("--images", type=int, nargs=2, default=(128, 32), help="train, test")
    args = parser.parse_args(arguments)
    folder = args.work_dir.resolve()
    draw_scenes(folder / "data", *args.images)
    teach(folder / "data", args.wrong)
    experiment = load(CONFIG, METHODS, schedule(args.iters))
    rows = {name: Row(name) for name in METHODS}
    runs = runs_of(experiment, rows, args.seeds, folder)
    kept = f"default_hooks.checkpoint.interval={args.iters}"
    sums = [replace(r, options=(*r.options, kept)) for r in runs if r.name == BASELINE]
    by_name = {run.folder: run for run in sums}
    runs = [by_name.get(run.folder, run) for run in runs]
    train_all(runs)
    comparison = conclude(experiment, runs, COLUMNS, "gain")
    words = sys.argv[1:] if arguments is None else arguments
    write(comparison, folder, ["python", "tools/fidelity/pseudo_labels.py", *words])
    judge(comparison, CLAIMS)
    checkpoints = [run.path / f"iter_{args.iters}.pth" for run in sums]
    found = {w: cosines(w, folder / "data", checkpoints, args.steps) for w in SHARES}
    print_cosines(found)
    (folder / "cosines.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
