"""Measure how STA and ISTA turn gradients, over seeds and models (paper B, fig. 1 and 2).

    python tools/fidelity/angles.py --work-dir work_dirs/angles

The models are not trained, as in the paper, and drawn anew with each seed. For the pictures see
``tools/analysis/allocation_angles.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import mmdet
from mmengine.config import Config

sys.path.append(str(Path(__file__).parents[1]))

from analysis.allocation_angles import SAMPLERS, angles_of, config_for  # noqa: E402
from fidelity.teachers import draw_scenes, teach  # noqa: E402
from make_demo_data import main as draw  # noqa: E402

from mtl_plugins.compare.statistics import (  # noqa: E402
    ALPHA,
    estimate,
    holm,
    paired_difference,
)

CONFIGS = Path(__file__).parents[2] / "configs"
FULL, STA, ISTA = SAMPLERS
Found = dict[str, list[list[float]]]  # by sampler: distances and angles, one a seed each


class Model(NamedTuple):
    """Model to measure.

    Attributes:
        config: Path of the config.
        draw: Draws the data into a folder, a number of images, and sets their place.
        changes: Settings over those of the config.
    """

    config: Path
    draw: Callable[[Path, int], None]
    changes: dict[str, Any]


def drawn(layout: str, root: str, size: tuple[int, int]) -> Callable[[Path, int], None]:
    """Return a function that draws a layout, and sets the environment variable of its root."""

    def draw_layout(folder: Path, images: int) -> None:
        os.environ[root] = str(folder)
        counts = ["--train", str(images), "--val", "1", "--size", *map(str, size)]
        draw(["--layout", layout, "--out", str(folder), *counts])

    return draw_layout


def draw_and_convert(folder: Path, images: int) -> None:
    """Draw Cityscapes' layout, and convert it by MMDetection's own script."""
    drawn("cityscapes", "CITYSCAPES_ROOT", (192, 96))(folder, images)
    script = Path(mmdet.__file__).parent / ".mim/tools/dataset_converters/cityscapes.py"
    command = [sys.executable, str(script), str(folder), "-o", str(folder / "annotations")]
    subprocess.run(command, check=True, capture_output=True)


def draw_and_teach(folder: Path, images: int) -> None:
    """Draw BDD100K's layout with right labels of both tasks on every image."""
    draw_scenes(folder, images, 2)
    teach(folder, 0.0)


NARROW = {"model.backbone.base_channels": 32, "model.neck.in_channels": [32, 64, 128, 256]}
MODELS = {
    "Mask R-CNN, COCO": Model(
        CONFIGS / "mask_rcnn/mask-rcnn_r18-small_fpn_coco.py",
        drawn("coco", "COCO_ROOT", (160, 120)),
        NARROW,
    ),
    "Mask R-CNN, Cityscapes": Model(
        CONFIGS / "cityscapes/mask-rcnn_r18-small_fpn_cityscapes.py",
        draw_and_convert,
        NARROW,
    ),
    "FCOS + semantic, BDD100K": Model(
        Path(__file__).with_name("configs") / "bdd100k_tiny.py",
        draw_and_teach,
        {
            "model.source_weights": {"_delete_": True, "pseudo": 1.0},
            "optim_wrapper.tasks": {"det": "loss_pseudo_det_*", "seg": "loss_pseudo_seg_*"},
        },
    ),
    "segmentation + depth, Cityscapes": Model(
        CONFIGS / "cityscapes_dense/segnet-small_cityscapes-7.py",
        drawn("cityscapes_mt", "CITYSCAPES_MTAN_ROOT", (128, 96)),
        {},
    ),
}


def measure(model: Model, seeds: int, steps: int) -> Found:
    """Measure distances from 90° between tasks and angles between steps, a mean for each seed."""
    found: Found = {name: [[], []] for name in SAMPLERS}
    for seed in range(seeds):
        cfg = Config.fromfile(model.config)
        cfg.merge_from_dict(model.changes)
        for step in cfg.train_dataloader.dataset.get("pipeline", ()):
            if step["type"] == "Resize":
                step["scale"] = (160, 120)
        cfg.train_dataloader.batch_size = 4
        cfg.randomness = {"seed": seed}
        cfg.log_level = "ERROR"
        for name, sampler in SAMPLERS.items():
            with TemporaryDirectory() as work_dir:
                tasks, pairs = angles_of(config_for(cfg, sampler, work_dir), None, steps)
            found[name][0].append(fmean(abs(angle - 90.0) for angle in tasks))
            found[name][1].append(fmean(pairs))
    return found


def print_verdicts(found: dict[str, Found]) -> None:
    """Print the means over seeds, and judge both claims for each model, paired by seed."""
    for number, title in enumerate(("between tasks, distance from 90°", "between steps, angle")):
        print(f"\nGradients {title}:\n")
        print("| model | " + " | ".join(SAMPLERS) + " |\n|" + "---|" * (1 + len(SAMPLERS)))
        for model, values in found.items():
            cells = [f"{estimate(values[name][number]):.1f}" for name in SAMPLERS]
            print(f"| {model} | " + " | ".join(cells) + " |")
    tests = {}
    for model, values in found.items():
        for name, number, claim in (
            (STA, 0, "STA turns tasks towards 90° (fig. 1)"),
            (ISTA, 0, "ISTA turns tasks towards 90°"),
            (ISTA, 1, "ISTA's steps are closer than full-task steps (fig. 2)"),
        ):
            pair = values[FULL][number], values[name][number]
            tests[f"{model}: {claim}"] = paired_difference(*pair, step=0.0)
    print()
    for (claim, test), p in zip(tests.items(), holm([t.p for t in tests.values()]), strict=True):
        verdict = "holds" if test.mean > 0.0 else "does not hold"
        if not p <= ALPHA:
            verdict = f"not decidable here ({'as claimed' if test.mean > 0.0 else 'against it'})"
        print(f"{claim}: {verdict}, by {test.mean:.1f}° ± {test.standard_error:.1f}°, p = {p:.2g}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", type=Path, required=True, help="folder of data and results")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=96)
    args = parser.parse_args(arguments)
    folder = args.work_dir.resolve()
    found = {}
    for name in args.models:
        MODELS[name].draw(folder / "data" / MODELS[name].config.stem, args.images)
        found[name] = measure(MODELS[name], args.seeds, args.steps)
    print_verdicts(found)
    (folder / "angles.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
