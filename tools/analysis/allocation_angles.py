"""Draw how STA and ISTA turn gradients, on one model that is not updated (paper B, fig. 1 and 2).

    python tools/analysis/allocation_angles.py CONFIG --steps 100 --out angles.png

Left: angles between the tasks' gradients of a step, where every image trains all tasks and where it
trains some. Right: angles between the gradients of one step and the next. All samplers see the same
images in the same order.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.runner import Runner

import mtl_plugins.mm  # noqa: F401
from mtl_plugins.mm.data_check import missing_data
from mtl_plugins.monitors import pairwise_angles
from mtl_plugins.step import Step

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

SAMPLERS = {"all tasks": None, "STA": "STABatchSampler", "ISTA": "ISTABatchSampler"}


def config_for(cfg: Config, sampler: str | None, work_dir: str) -> Config:
    """Make a config of the plain sum, with a batch sampler around that of the config."""
    cfg = Config(cfg.to_dict())
    cfg.work_dir = work_dir
    cfg.visualizer = {"type": "Visualizer", "name": work_dir}  # MMEngine keeps one of each name
    inner = cfg.train_dataloader.pop("batch_sampler", None)
    while inner is not None and inner["type"] in SAMPLERS.values():  # a config of STA or ISTA
        inner = inner.get("batch_sampler")
    if sampler is not None:
        inner = {"type": sampler, "tasks": list(cfg.optim_wrapper.tasks), "batch_sampler": inner}
        if inner["batch_sampler"] is None:  # the loader's own drop_last excludes a batch sampler
            inner["drop_last"] = cfg.train_dataloader.pop("drop_last", False)
    if inner is not None:
        cfg.train_dataloader.batch_sampler = inner
    optimizer = cfg.optim_wrapper.optimizer
    cfg.optim_wrapper = dict(
        type="MTLOptimWrapper", optimizer=optimizer, tasks=cfg.optim_wrapper.tasks
    )
    cfg.randomness = {"seed": 0, **cfg.get("randomness", {})}
    return cfg


def gradients(cfg: Config, checkpoint: str | None, steps: int) -> Iterator[tuple[Step, Any]]:
    """Yield what is known of each step, and the gradient of the tasks' sum."""
    runner = Runner.from_cfg(cfg)
    loader = runner.build_dataloader(cfg.train_dataloader, seed=runner.seed)
    wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    model = runner.model
    model.init_weights()
    if checkpoint is not None:
        runner.load_checkpoint(checkpoint)
    model.train()
    for batch in islice(loader, steps):
        model.zero_grad()
        with wrapper.optim_context(model):
            losses = model(**model.data_preprocessor(batch, True), mode="loss")
        loss, _ = model.parse_losses(losses)
        wrapper.multitask.monitor = True
        wrapper.backward(loss)
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        yield wrapper.multitask.last, torch.cat(grads)


def angles_of(cfg: Config, checkpoint: str | None, steps: int) -> tuple[list[float], list[float]]:
    """Measure angles (degrees) between the tasks of a step, and between a step and the next."""
    tasks, pairs = [], []
    before = None
    for step, gradient in gradients(cfg, checkpoint, steps):
        gramian = step.gramian
        present = (gramian.diagonal() > 0).nonzero().flatten()
        if len(present) > 1:
            angles = pairwise_angles(gramian[present][:, present])
            tasks += angles[tuple(torch.triu_indices(*angles.shape, 1))].tolist()
        if before is not None and len(before) == len(gradient):
            rows = torch.stack([before, gradient]).double()
            pairs.append(float(pairwise_angles(rows @ rows.T)[0, 1]))
        before = gradient
    return tasks, pairs


def draw(found: dict[str, tuple[list[float], list[float]]], out: Path) -> None:
    """Draw a panel for the tasks and one for the steps, with a curve for each way to allocate."""
    titles = ("between the tasks of a step", "between a step and the next")
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    bins = np.linspace(0, 180, 61)
    for panel, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        for colour, (name, angles) in enumerate(found.items()):
            values = np.array(angles[panel])
            label = f"{name}: {values.mean():.1f}° ± {values.std():.1f}°"
            style = {"bins": bins, "density": True, "color": f"C{colour}"}
            axis.hist(values, histtype="stepfilled", alpha=0.15, **style)
            axis.hist(values, histtype="step", linewidth=1.8, label=label, **style)
        axis.axvline(90, color="grey", linestyle=":", linewidth=1)
        everything = np.concatenate([np.array(angles[panel]) for angles in found.values()])
        axis.set(
            title=f"Angle of gradients {title}",
            xlabel="degrees",
            ylabel="density",
            xlim=(max(0, everything.min() - 10), min(180, everything.max() + 10)),
        )
        axis.legend(fontsize="small", title="mean ± standard deviation")
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="train config with optim_wrapper.tasks")
    parser.add_argument("--checkpoint", help="weights of the model; by default its initial ones")
    parser.add_argument("--steps", type=int, default=100, help="steps (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("angles.png"), help="PNG to write")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="as for train.py")
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if len(cfg.optim_wrapper.get("tasks") or ()) < 2:
        raise SystemExit(f"{args.config}: optim_wrapper.tasks names fewer than two tasks")
    if problem := missing_data(cfg):
        raise SystemExit(problem)
    found = {}
    with TemporaryDirectory() as work_dir:
        for name, sampler in SAMPLERS.items():
            found[name] = angles_of(config_for(cfg, sampler, work_dir), args.checkpoint, args.steps)
            means = [f"{np.mean(angles):.1f}" for angles in found[name]]
            print(f"{name}: tasks {means[0]}°, steps {means[1]}°", flush=True)
    draw(found, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
