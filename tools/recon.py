"""Rank the layers that the tasks fought over, and write a config in which each task has its own.

    python tools/train.py CONFIG --mtl recon --work-dir work_dirs/first     # counts the conflicts
    python tools/recon.py work_dirs/first/layer_conflicts.json CONFIG --top 39
    python tools/train.py work_dirs/first/CONFIG_recon-39.py --mtl pcgrad   # from scratch

Recon (https://arxiv.org/abs/2302.11289) trains jointly for a quarter of the iterations (its code
on Cityscapes: 40 of 200 epochs), then turns the worst layers task-specific and begins anew.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mtl_plugins.mm  # noqa: F401
from mtl_plugins.layer_conflicts import read_record


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="layer_conflicts.json in the folder of a run")
    parser.add_argument("config", type=Path, help="config of that run, of a MultiTaskSegmentor")
    parser.add_argument("--top", type=int, required=True, metavar="K", help="number of layers")
    parser.add_argument("--out", type=Path, help="config to write; by default beside the record")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    for path in (args.record, args.config):
        if not path.is_file():
            raise SystemExit(f"{path}: there is no such file")
    if args.config.suffix != ".py":
        raise SystemExit(
            f"{args.config}: expected a config in Python, of a MultiTaskSegmentor; Detectron2's "
            "models run their trunk once for all tasks, and have no layers of a task's own"
        )
    try:
        record = read_record(args.record)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    scores: dict[str, int] = record["scores"]
    cfg = Config.fromfile(args.config)
    if not str(cfg.model.type).endswith("MultiTaskSegmentor"):
        raise SystemExit(f"model.type: expected MultiTaskSegmentor, got {cfg.model.type!r}")
    trunk = {n: s for n, s in scores.items() if n.split(".")[0] in ("backbone", "neck")}
    if not 1 <= args.top <= len(trunk):
        raise SystemExit(f"--top: expected 1 to {len(trunk)} layers of the trunk, got {args.top}")
    names = list(trunk)[: args.top]

    before = size_of(cfg)
    cfg.model.task_layers = names
    try:
        model = build(cfg)
    except ValueError as error:
        raise SystemExit(f"{args.record} does not fit {args.config}: {error}") from error
    if list(model.heads) != record["tasks"]:
        raise SystemExit(
            f"{args.record}: was counted for the tasks {record['tasks']}, "
            f"{args.config} has {list(model.heads)}"
        )
    width = max(map(len, trunk))
    pairs = record["steps"] * len(record["tasks"]) * (len(record["tasks"]) - 1) // 2
    print(f"{'rank':>4}  {'layer'.ljust(width)}  conflicts of {pairs}")
    for rank, (name, score) in enumerate(trunk.items(), 1):
        print(f"{rank:>4}  {name.ljust(width)}  {score}{'  *' if rank <= args.top else ''}")
    print(f"parameters: {before:.2f} MiB, with one copy of * a task {mebibytes(model):.2f} MiB")

    out = args.out or args.record.parent / f"{args.config.stem}_recon-{args.top}.py"
    if out.resolve() == args.config.resolve():
        raise SystemExit(f"--out: {out} is the config itself")
    base = os.path.relpath(args.config.resolve(), out.resolve().parent)
    layers = "".join(f'        "{name}",\n' for name in names)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        f"# The {args.top} layers with most conflicts in {record['steps']} steps, cosines below "
        f"{record['threshold']}, by tools/recon.py.\n"
        f'_base_ = ["{Path(base).as_posix()}"]\n\n'
        f"model = dict(\n    task_layers=[\n{layers}    ]\n)\n"
    )
    print(f"wrote {out}")


def build(cfg: Config) -> nn.Module:
    """Build the model of a config, without memory for its weights."""
    with DefaultScope.overwrite_default_scope("mmseg"), torch.device("meta"):
        return MODELS.build(cfg.model)


def mebibytes(model: nn.Module) -> float:
    """Return the size of the parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20


def size_of(cfg: Config) -> float:
    """Return the size of the model of a config, in MiB."""
    return mebibytes(build(cfg))


if __name__ == "__main__":
    main()
