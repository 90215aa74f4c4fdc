"""Train the small Mask R-CNN on drawn scenes, once with the plain sum and once with a method.

The commands are those that a user would type; the output is one table and two kinds of pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools" / "analysis"))

from interference.reading import scalars_file  # noqa: E402
from plot_interference import main as plot  # noqa: E402

from mtl_plugins.metrics import delta_m  # noqa: E402

CONFIG = "configs/mask_rcnn/mask-rcnn_r18-small_fpn_coco.py"
STANDARD = "configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
VAL_IMAGES = 16  # default of make_demo_data.py
METRICS = {"detection": "coco/bbox_mAP", "mask": "coco/segm_mAP"}


def call(*command: str, log: Path | None = None) -> None:
    """Run a Python script of the repository; a long output goes to a file.

    Raises:
        SystemExit: The script failed.
    """
    print("$ python", *command, flush=True)
    with open(log, "w") if log else open(os.devnull, "w") as out:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=out if log else None,
            stderr=out if log else None,
        )
    if done.returncode:
        raise SystemExit(f"that failed; see {log or 'above'}")


def results(run: Path) -> tuple[dict[str, dict[str, float]], float]:
    """Read the metrics of each task at the end of a run, and the median seconds of an iteration."""
    records = [json.loads(line) for line in scalars_file(run).read_text().splitlines()]
    last = next(r for r in reversed(records) if METRICS["detection"] in r)
    times = sorted(r["time"] for r in records if "loss" in r)
    return {task: {name: last[name]} for task, name in METRICS.items()}, times[len(times) // 2]


def verdict(baseline: dict[str, dict[str, float]], method: dict[str, dict[str, float]]) -> str:
    """Say what two runs with one seed and a few images can show, and what not."""
    largest = max(
        abs(value - baseline[task][name])
        for task, scores in method.items()
        for name, value in scores.items()
    )
    return (
        f"\nThe largest difference, {largest:.3f} AP, is noise: one seed, {VAL_IMAGES} images.\n"
        "What this shows: both train, how the gradients of the tasks get on, what a step costs.\n"
        "What it cannot show: which method is better. That takes your data and several seeds."
    )


def next_commands(data: Path) -> str:
    """Give the three commands to type next."""
    return "\n".join(
        (
            "  .venv/bin/mtl-train --list    # all methods",
            f"  COCO_ROOT={data} .venv/bin/mtl-train {CONFIG} --mtl mgda+feature",
            f"  .venv/bin/mtl-train {STANDARD} --mtl pcgrad    # COCO in data/coco, a GPU",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="pcgrad", help="a name in configs/_base_/mtl")
    parser.add_argument("--iters", type=int, default=150, help="of each training")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "demo" / "coco")
    parser.add_argument("--out", type=Path, default=ROOT / "work_dirs" / "demo")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ["COCO_ROOT"] = str(args.data.resolve())

    call("tools/make_demo_data.py", "--layout", "coco", "--out", str(args.data.resolve()))
    methods = ["sum", args.method]
    for method in methods:
        call(
            "tools/train.py",
            CONFIG,
            "--mtl",
            method,
            "--work-dir",
            str(out / method),
            "--cfg-options",
            f"train_cfg.max_iters={args.iters}",
            f"train_cfg.val_interval={args.iters}",
            f"default_hooks.checkpoint.interval={args.iters}",
            f"param_scheduler.1.T_max={args.iters}",
            "randomness.seed=0",
            log=out / f"{method}.log",
        )
    call(
        "tools/test.py",
        CONFIG,
        str(out / args.method / f"iter_{args.iters}.pth"),
        "--work-dir",
        str(out / "test"),
        "--show-dir",
        "predictions",
        "--cfg-options",
        "default_hooks.visualization.score_thr=0.3",
        log=out / "test.log",
    )
    plot([*(str(out / method) for method in methods), "--out", str(out / "interference.png")])

    baseline, _ = results(out / "sum")
    print(f"\n{'method':10}{'box AP':>8}{'mask AP':>9}{'Δ (noise)':>11}{'s/iter':>8}")
    for method in methods:
        metrics, seconds = results(out / method)
        box, mask = (metrics[task][name] for task, name in METRICS.items())
        solved = all(value for scores in baseline.values() for value in scores.values())
        delta = f"{delta_m(metrics, baseline):+.1f} %" if solved else "-"
        print(f"{method:10}{box:8.3f}{mask:9.3f}{delta:>11}{seconds:8.2f}")
    print(verdict(*(results(out / method)[0] for method in methods)))
    print(f"\nGDS and GMS curves:  {out / 'interference.html'}")
    print(f"Predictions (right) beside the truth (left):  {out / 'test'}/*/predictions")
    print(f"\nNext:\n{next_commands(args.data)}")


if __name__ == "__main__":
    main()
