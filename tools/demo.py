"""Draw scenes, and compare methods on the small Mask R-CNN with ``mtl-compare``.

The commands are those that a user would type.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIG = "configs/mask_rcnn/mask-rcnn_r18-small_fpn_coco.py"
STANDARD = "configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
METHODS = ["pcgrad", "mgda+feature", "ista"]  # "(rep) MGDA" is mgda+feature
VAL_IMAGES = 16  # default of make_demo_data.py


def call(*command: str) -> None:
    """Run a Python script of the repository.

    Raises:
        SystemExit: The script failed.
    """
    print("$ python", *command, flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        raise SystemExit("that failed; see above")


def verdict(results: Mapping[str, Any]) -> str:
    """Say how much a few seeds and images can show.

    Args:
        results: Content of ``results.json``.
    """
    largest = max(abs(pair["mean"]) for pair in results["against_sum"])
    seeds = max(pair["seeds"] for pair in results["against_sum"])
    words = "one seed" if seeds == 1 else f"{seeds} seeds"
    found = any(pair["differs"] for pair in results["against_sum"])
    doubt = "may be more than chance on these images" if found else "is noise"
    return (
        f"\nThe largest difference, {largest:.3f} AP, {doubt}: {words}, {VAL_IMAGES} images.\n"
        "What this shows: all train, how the gradients of the tasks get on, what a step costs.\n"
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
    parser.add_argument("--methods", nargs="+", default=METHODS, help="names for --mtl")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--iters", type=int, default=75, help="of each training")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "demo" / "coco")
    parser.add_argument("--out", type=Path, default=ROOT / "work_dirs" / "demo")
    args = parser.parse_args()
    # Two runs of one thread each take less time on two cores than one run of two threads.
    jobs = str(min(os.cpu_count() or 1, len(args.methods) + 1))
    data, out = args.data.resolve(), args.out.resolve()
    os.environ["COCO_ROOT"] = str(data)

    call("tools/make_demo_data.py", "--layout", "coco", "--out", str(data))
    call(
        *("tools/compare.py", CONFIG, "--mtl", *args.methods),
        *("--seeds", str(args.seeds), "--work-dir", str(out), "--pictures", "2", "--jobs", jobs),
        "--cfg-options",
        f"train_cfg.max_iters={args.iters}",
        f"train_cfg.val_interval={args.iters}",
        f"param_scheduler.1.T_max={args.iters}",
        "default_hooks.checkpoint.interval=25",
        "custom_hooks.0.monitors=[gds,gms,angles,fd]",
        "custom_hooks.0.representation=neck",
    )
    print(verdict(json.loads((out / "results.json").read_text())))
    print(f"\nNext:\n{next_commands(args.data)}")


if __name__ == "__main__":
    main()
