"""Measure time and memory of a config's training step with each method, beside the plain sum.

    python tools/analysis/benchmark_methods.py CONFIG --mtl pcgrad mgda+feature uncertainty

Names of methods are those of --mtl in tools/train.py. A step is all that the runner does with a
batch: forward, backward, method and optimizer, with learning rate 0. All methods see the same batch
of the config's data. The number of objects that a detector finds there, and so the cost of a step,
depends on the weights: --checkpoint. The table has

* the median seconds of a step, also relative to the plain sum, which is timed in turn with each
  method. On the CPU it is processor time, which other programs on the machine do not lengthen;
* the peak of memory over two steps, above the memory before the first. On a CUDA device memory is
  what PyTorch has allocated, on the CPU the resident size of a process forked for each method.

With --shared neck there are two lines more, of what a step cannot do without. At the level of the
parameters: forward, and for each task a backward pass through the heads and one through the modules
before them. At that of the features: forward, for each task a pass from its loss to the features,
once the gradients of the heads' parameters (the time of a pass of the sum through the heads, less
that to the features), and one pass through the modules before the heads.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from timing import MIB, in_a_fork, keep_freed_memory, median_seconds, peak_of
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))
from train import lay_over  # noqa: E402

from mtl_plugins.features import Representation, find_module  # noqa: E402
from mtl_plugins.mm.data_check import missing_data  # noqa: E402
from mtl_plugins.tasks import TaskGroups  # noqa: E402

BASELINE = "sum"
Step = Callable[[], Any]


def build(cfg: Config, work_dir: str) -> tuple[Runner, Any]:
    """Build a runner with the model in training mode, and load a batch."""
    cfg = Config({**cfg.to_dict(), "work_dir": work_dir, "log_level": "ERROR"})
    cfg.randomness = {"seed": 0, **cfg.get("randomness", {})}
    cfg.optim_wrapper.optimizer.lr = 0.0  # each step finds the same objects
    runner = Runner.from_cfg(cfg)
    batch = next(iter(runner.build_dataloader(cfg.train_dataloader, seed=runner.seed)))
    runner.model.init_weights()
    runner.load_or_resume()
    runner.model.train()
    return runner, batch


def step_of(cfg: Config, work_dir: str) -> Step:
    """Make the call that the training loop makes with a batch."""
    runner, batch = build(cfg, work_dir)
    wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    wrapper.initialize_count_status(runner.model, 0, 1000)
    return partial(runner.model.train_step, batch, wrapper)


def parts_of(cfg: Config, shared: str, work_dir: str) -> dict[str, Step]:
    """Split a step into its parts."""
    runner, batch = build(cfg, work_dir)
    model: nn.Module = runner.model
    cut = Representation(find_module(model, shared, "--shared"))
    data = model.data_preprocessor(batch, True)

    def forward() -> list[torch.Tensor]:
        cut.clear()  # free the graphs of earlier calls
        losses = model(**data, mode="loss")
        _, terms = model.parse_losses(losses)
        terms = {k: v for k, v in terms.items() if "loss" in k and k in losses}
        return list(TaskGroups(cfg.optim_wrapper.get("tasks"))(terms).values())

    losses = forward()
    outputs = list(cut.outputs)
    grads = [torch.randn_like(output) for output in outputs]

    leaves = [feature.grad_fn.next_functions[1][0].variable for feature in cut.tensors]

    def heads() -> None:
        for loss in losses:
            loss.backward(retain_graph=True)
            cut.take_grads()

    def to_features() -> None:
        for loss in losses:
            loss.backward(retain_graph=True, inputs=leaves)
            cut.take_grads()

    def sum_back(inputs: list[torch.Tensor] | None = None) -> None:
        sum(losses).backward(retain_graph=True, inputs=inputs)
        cut.take_grads()

    def before() -> None:
        torch.autograd.backward(outputs, grads, retain_graph=True)

    return {
        "forward": forward,
        "heads": heads,
        "to features": to_features,
        "heads, sum": sum_back,
        "heads, sum to features": partial(sum_back, leaves),
        "before": before,
    }


def bounds(seconds: Mapping[str, float], tasks: int) -> dict[str, dict[str, float]]:
    """Put the parts of a step together, for each level."""
    return {
        "parameter": {
            "forward": seconds["forward"],
            "heads": seconds["heads"],
            f"{tasks} x before them": tasks * seconds["before"],
        },
        "feature": {
            "forward": seconds["forward"],
            "heads to features": seconds["to features"],
            "their parameters": seconds["heads, sum"] - seconds["heads, sum to features"],
            "before them": seconds["before"],
        },
    }


def peak_bytes(cfg: Config, work_dir: str, device: str) -> int:
    """Measure the peak of two steps above the memory in use before."""
    return peak_of(step_of(cfg, work_dir), device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="train config file path")
    parser.add_argument("--mtl", nargs="+", metavar="NAME", required=True, help="methods")
    parser.add_argument("--checkpoint", help="weights of the model; by default its initial ones")
    parser.add_argument("--repeats", type=int, default=5, help="steps to take the median of")
    parser.add_argument("--shared", help="path of the module whose output the tasks share")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="as for train.py")
    args = parser.parse_args()

    def config(name: str) -> Config:
        cfg = lay_over(Config.fromfile(args.config), name)
        if {"sta", "ista"} & set(name.split("+")):
            raise SystemExit(
                f"--mtl: {name} gives each batch other heads to compute, which one batch cannot "
                "show; mtl-compare times whole runs"
            )
        cfg.load_from = args.checkpoint or cfg.get("load_from")
        if args.cfg_options is not None:
            cfg.merge_from_dict(args.cfg_options)
        return cfg

    configs = {name: config(name) for name in [BASELINE, *args.mtl]}
    if problem := missing_data(configs[BASELINE]):
        raise SystemExit(problem)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clock = time.perf_counter if device == "cuda" else time.process_time
    measure = peak_bytes if device == "cuda" else partial(in_a_fork, peak_bytes)
    timed = partial(median_seconds, rounds=args.repeats, device=device, clock=clock)
    with TemporaryDirectory() as work_dir:
        # First, since a fork does not inherit the threads that PyTorch starts when it computes.
        memory = {name: measure(cfg, work_dir, device) / MIB for name, cfg in configs.items()}
        keep_freed_memory()
        rows = [f"{'':<24} {'s a step':>9} {'x sum':>6} {'peak MiB':>9} {'x sum':>6}"]
        for name in args.mtl:
            # Build both models anew, since a model that lies in memory for long may get slower.
            pair = (BASELINE, name)
            seconds = timed({which: step_of(configs[which], work_dir) for which in pair})
            ratios = seconds[name] / seconds[BASELINE], memory[name] / memory[BASELINE]
            rows.append(
                f"{name:<24} {seconds[name]:9.3f} {ratios[0]:6.2f} "
                f"{memory[name]:9.0f} {ratios[1]:6.2f}"
            )
        if args.shared:
            parts = parts_of(configs[BASELINE], args.shared, work_dir)
            seconds = timed({BASELINE: step_of(configs[BASELINE], work_dir), **parts})
            tasks = len(configs[BASELINE].optim_wrapper.tasks)
            for level, found in bounds(seconds, tasks).items():
                total = sum(found.values())
                words = ", ".join(f"{name} {taken:.3f}" for name, taken in found.items())
                name, ratio = f"sum of parts, {level}", total / seconds[BASELINE]
                rows.append(f"{name:<24} {total:9.3f} {ratio:6.2f}  ({words})")
    # Print at the end, since loading the data prints lines of its own.
    print("\n".join(rows))


if __name__ == "__main__":
    main()
