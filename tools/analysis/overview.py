r"""Draw the picture of the README: how two tasks get on, and what the detector then sees.

    python tools/analysis/overview.py work_dirs/demo/sum/0 work_dirs/demo/pcgrad/0 \
        --out docs/images/overview.png

The runs are those of ``mtl-train``: the curves come from all of them, the predictions on the first
image of a split from the last checkpoint of the last run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
from interference.reading import labels, read_curves
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint
from PIL import Image

import mtl_plugins.mm  # noqa: F401
from mtl_plugins.compare.figures import COLOURS, smooth


def draw_similarity(axis: Axes, runs: list[Path]) -> None:
    """Draw the cosine of the gradients of the tasks over each run, smoothed and as it was."""
    for run, name, colour in zip(runs, labels(runs), COLOURS, strict=False):
        steps, values = read_curves(run)["mtl/gds"]
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axis.plot(steps, smooth(values), color=colour, linewidth=2, label=name)
    axis.axhline(0, color="#717581", linewidth=0.8)
    axis.set(xlabel="iteration", ylabel="cosine of the task gradients (GDS)")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def draw_masks(axis: Axes, image: np.ndarray, masks: np.ndarray, boxes: np.ndarray) -> None:
    """Draw an image with coloured masks and boxes.

    Args:
        axis: Axis to draw on.
        image: RGB image, ``[H, W, 3]``, 0 to 255.
        masks: Masks of the objects, bool ``[N, H, W]``.
        boxes: Corners of the boxes, ``[N, 4]`` (pixels).
    """
    picture = image.astype(np.float64) / 255
    for number, (mask, (left, top, right, bottom)) in enumerate(zip(masks, boxes, strict=True)):
        colour = np.array(matplotlib.colors.to_rgb(COLOURS[number % len(COLOURS)]))
        picture[mask] = 0.45 * picture[mask] + 0.55 * colour
        corners = ([left, right, right, left, left], [top, top, bottom, bottom, top])
        axis.plot(*corners, color=colour, linewidth=1.2)
    axis.imshow(picture)
    axis.set_axis_off()


def main() -> None:
    """Draw what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="work directories")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--score", type=float, default=0.3, help="of the predictions drawn")
    parser.add_argument("--split", choices=["train", "test"], default="test")
    args = parser.parse_args()

    register_all_modules()
    matplotlib.use("Agg")
    cfg = Config.fromfile(sorted(args.runs[-1].glob("*.py"))[0])
    cfg.merge_from_dict({"test_dataloader.num_workers": 0})
    model = init_detector(cfg, find_latest_checkpoint(str(args.runs[-1])), device="cpu")
    data = cfg.test_dataloader.dataset
    if args.split == "train":
        train = cfg.train_dataloader.dataset
        data.ann_file, data.data_prefix = train.ann_file, train.data_prefix
    sample = DATASETS.build(data)[0]["data_samples"]
    found = inference_detector(model, sample.img_path).pred_instances
    found = found[found.scores > args.score]
    image = matplotlib.image.imread(sample.img_path)
    image = image if image.dtype == np.uint8 else (image[..., :3] * 255).astype(np.uint8)
    truth = sample.gt_instances
    scale = np.array([*sample.scale_factor, *sample.scale_factor])

    figure = Figure(figsize=(10, 2.9), layout="constrained")
    curve, left, right = figure.subplots(1, 3, width_ratios=[1.5, 1, 1])
    draw_similarity(curve, args.runs)
    masks = truth.masks.resize(image.shape[:2]).masks.astype(bool)
    draw_masks(left, image, masks, truth.bboxes.numpy() / scale)
    draw_masks(right, image, found.masks.numpy().astype(bool), found.bboxes.numpy())
    left.set_title("truth")
    right.set_title(f"prediction, {labels(args.runs)[-1]}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)
    # A palette of 96 colours is enough, and makes the file a fifth as large.
    Image.open(args.out).convert("RGB").quantize(96).save(args.out, optimize=True)
    print(f"{len(found)} objects predicted, {len(truth)} there; wrote {args.out}")


if __name__ == "__main__":
    main()
