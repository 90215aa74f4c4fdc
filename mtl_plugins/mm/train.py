"""Train from a config, with MMDetection's own arguments and ``--mtl``."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.hub import get_config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import mtl_plugins
from mtl_plugins.methods import parse_names, table
from mtl_plugins.mm.data_check import data_problem
from mtl_plugins.mm.runner import close_group, is_mtl
from mtl_plugins.registry import suggest

METHODS = mtl_plugins.configs() / "_base_" / "mtl"
NAMES = sorted(p.relative_to(METHODS).with_suffix("").as_posix() for p in METHODS.rglob("*.py"))
PARTS = ("aggregator", "weighting", "regularizer")
# Errors that begin with one of these keys are about the config, and need no traceback.
_KEYS = re.compile(
    r"(optim_wrapper|train_dataloader|val_dataloader|model|model_wrapper_cfg|custom_hooks"
    r"|TaskInterferenceHook|LayerConflictHook|resume)\b"
)
_UNKNOWN = re.compile(r"unexpected keyword argument '(rotations|task_layers|task_norm)'")


class _List(argparse.Action):
    """Print the methods, as ``--help`` prints the options."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:  # type: ignore[override]
        print(table())
        parser.exit()


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, and set ``LOCAL_RANK`` if the launcher has not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of a config, or one of a package: mmdet::folder/name")
    parser.add_argument("--work-dir", help="the directory to save logs and models")
    parser.add_argument(
        "--mtl",
        metavar="NAME",
        help="lay configs/_base_/mtl/NAME.py over the config, or several as NAME+NAME, "
        "with options as NAME:KEY=VALUE; "
        f"of {', '.join(NAMES)}",
    )
    parser.add_argument("--list", action=_List, nargs=0, help="print all methods and leave")
    parser.add_argument("--amp", action="store_true", help="train in mixed precision")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the LR by batch size")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="checkpoint to resume from; without a path, the latest one in the work directory",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        help='override settings of the config: key=value, key=a,b or key="[(a,b),(c,d)]"',
    )
    parser.add_argument(
        "--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="launcher"
    )
    # torch.distributed.launch passes --local-rank.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    args = parser.parse_args(arguments)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


def lay_over(cfg: Config, names: str) -> Config:
    """Merge the configs of methods over ``cfg``, keeping the custom hooks and imports of all.

    Args:
        cfg: Whole config; changed in place.
        names: Names of the methods, joined by ``+``, options after colons: ``"cagrad:c=0.8"``.

    Raises:
        SystemExit: There is no such method, or two exclude each other.
    """
    if "optim_wrapper" not in cfg or "train_dataloader" not in cfg:
        raise SystemExit("--mtl: the config has no optim_wrapper or no train_dataloader to change")
    given: dict[str, str] = {}  # method by the part that it sets
    for name, options in parse_names(names):
        path = METHODS / f"{name}.py"
        if not path.is_file():
            raise SystemExit(f"--mtl: no method is called {name!r}; " + suggest(name, NAMES))
        method = Config.fromfile(path)
        parts = [part for part in PARTS if part in method.optim_wrapper]
        allocates = "train_dataloader" in method
        method.merge_from_dict(_placed(options, name, parts, allocates))
        allocation = method.get("train_dataloader", {}).get("batch_sampler")
        for part in [*parts, *(["batch_sampler"] if allocation else [])]:
            if part in given:
                raise SystemExit(
                    f"--mtl: {given[part]!r} and {name!r} both set the {part}, and a run has one; "
                    "methods that combine are an aggregator, a weighting, a regularizer, "
                    "sta or ista, and feature"
                )
            given[part] = name
        if str(cfg.optim_wrapper.get("type", "")).startswith("Amp"):
            method.optim_wrapper.type = "AmpMTLOptimWrapper"
        hooks = cfg.get("custom_hooks", [])
        present = {hook["type"] for hook in hooks}
        method.custom_hooks = hooks + [
            h for h in method.get("custom_hooks", []) if h.type not in present
        ]
        if "custom_imports" in cfg:
            imports = cfg.custom_imports["imports"]
            imports = [imports] if isinstance(imports, str) else list(imports)
            method.custom_imports.imports = [
                *imports,
                *(i for i in method.custom_imports.imports if i not in imports),
            ]
        for part in parts:  # the earlier arguments are another method's
            cfg.optim_wrapper.pop(part, None)
        if allocation and cfg.train_dataloader.get("batch_sampler"):
            allocation.batch_sampler = cfg.train_dataloader.pop("batch_sampler")
        elif allocation and "drop_last" in cfg.train_dataloader:
            # PyTorch takes the option only without a batch sampler.
            allocation.drop_last = cfg.train_dataloader.pop("drop_last")
        cfg.merge_from_dict(method.to_dict())
    return cfg


def _placed(
    options: Mapping[str, str], name: str, parts: Sequence[str], allocates: bool
) -> dict[str, Any]:
    """Place the options of a method where its config has them, by dotted key.

    Raises:
        SystemExit: The config has two methods.
    """
    if options and len(parts) > 1:
        raise SystemExit(
            f"--mtl {name}: sets the {' and the '.join(parts)}, and the options could be of "
            f"either; use --cfg-options optim_wrapper.{parts[0]}.{next(iter(options))}=..."
        )
    place = "train_dataloader.batch_sampler" if allocates else ".".join(["optim_wrapper", *parts])
    parse = DictAction._parse_iterable  # as --cfg-options reads a value
    return {f"{place}.{key}": parse(value) for key, value in options.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says.

    Args:
        arguments: Arguments of the command line; by default those of this process.

    Raises:
        SystemExit: The command line, the config or the data is at fault; the message says how.
    """
    args = parse_args(arguments)
    if "::" not in args.config and not Path(args.config).is_file():
        raise SystemExit(f"config: there is no file {args.config!r}")
    cfg = get_config(args.config) if "::" in args.config else Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.mtl is not None:
        cfg = lay_over(cfg, args.mtl)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)

    # --work-dir, else the config's work_dir, else a folder with the config's name
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        method = f"_{args.mtl.replace('/', '-')}" if args.mtl else ""
        cfg.work_dir = f"work_dirs/{Path(args.config).stem}{method}"

    if args.amp:
        ours = is_mtl(cfg.optim_wrapper)
        cfg.optim_wrapper.type = "AmpMTLOptimWrapper" if ours else "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")

    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise SystemExit("--auto-scale-lr: the config has no auto_scale_lr.base_batch_size")
        cfg.auto_scale_lr.enable = True

    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume

    if problem := data_problem(cfg):
        raise SystemExit(problem)
    try:
        runner = RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
        runner.train()
    except (KeyError, TypeError, ValueError) as error:
        if error.args and _KEYS.match(str(error.args[0])):
            raise SystemExit(error.args[0]) from error
        if found := _UNKNOWN.search(str(error)):
            takers = "'MultiTaskSegmentor'"
            if found[1] == "task_norm":
                takers += ", 'SemanticDetector' or, for Mask R-CNN, 'TaskNormMaskRCNN'"
            raise SystemExit(
                f"model.{found[1]}: {cfg.model.type} does not take it; it is for "
                f"model.type={takers}"
            ) from error
        raise
    close_group()


if __name__ == "__main__":
    main()
