"""Trains from a config, with MMDetection's own arguments and ``--mtl``."""

import argparse
import os
import subprocess
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import mtl_plugins.mm  # noqa: F401
from mtl_plugins.mm.data_check import broken_annotations, missing_data
from mtl_plugins.registry import suggest

METHODS = Path(__file__).parents[1] / "configs" / "_base_" / "mtl"
# What launchers other than PyTorch's call RANK, WORLD_SIZE and LOCAL_RANK.
RANKS = {
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="train config file path")
    parser.add_argument("--work-dir", help="the directory to save logs and models")
    parser.add_argument(
        "--mtl",
        metavar="NAME",
        help="lay configs/_base_/mtl/NAME.py over the config, or several as NAME+NAME; "
        f"of {', '.join(sorted(p.stem for p in METHODS.glob('*.py')))}",
    )
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
    args = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


def lay_over(cfg: Config, names: str) -> Config:
    """Merges the configs of methods over ``cfg``, keeping the custom hooks and imports of all."""
    for name in names.split("+"):
        path = METHODS / f"{name}.py"
        if not path.is_file():
            raise SystemExit(
                f"--mtl: no method is called {name!r}; "
                + suggest(name, sorted(p.stem for p in METHODS.glob("*.py")))
            )
        method = Config.fromfile(path)
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
        for part in ("aggregator", "weighting", "regularizer"):
            if part in method.optim_wrapper:  # the arguments before are another method's
                cfg.optim_wrapper.pop(part, None)
        allocation = method.get("train_dataloader", {}).get("batch_sampler")
        if allocation and cfg.train_dataloader.get("batch_sampler"):
            allocation.batch_sampler = cfg.train_dataloader.pop("batch_sampler")
        cfg.merge_from_dict(method.to_dict())
    return cfg


def init_gloo(launcher: str) -> None:
    """Starts the process group on CPUs, from the environment that ``launcher`` sets.

    MMEngine reads the same variables, but selects a CUDA device; it keeps a group that is there.
    """
    if launcher in RANKS:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        os.environ.update({k: os.environ[v] for k, v in zip(names, RANKS[launcher], strict=True)})
    if launcher == "slurm" and "MASTER_ADDR" not in os.environ:
        command = ["scontrol", "show", "hostname", os.environ["SLURM_NODELIST"]]
        os.environ["MASTER_ADDR"] = subprocess.check_output(command, text=True).split()[0]
    os.environ.setdefault("MASTER_PORT", "29500")
    torch.distributed.init_process_group("gloo")


def main() -> None:
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.mtl is not None:
        cfg = lay_over(cfg, args.mtl)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)

    # --work-dir, else that of the config, else after the config's name
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        method = f"_{args.mtl}" if args.mtl else ""
        cfg.work_dir = f"work_dirs/{Path(args.config).stem}{method}"

    is_mtl = str(cfg.optim_wrapper.get("type", "")).endswith("MTLOptimWrapper")
    if args.amp:
        cfg.optim_wrapper.type = "AmpMTLOptimWrapper" if is_mtl else "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")

    batch_sampler = cfg.train_dataloader.get("batch_sampler") or {}
    if batch_sampler.get("type") in ("STABatchSampler", "ISTABatchSampler"):
        batch_sampler.setdefault("tasks", list(cfg.optim_wrapper.get("tasks") or ()))

    # The same arguments, and one that a kill cannot break.
    if is_mtl:
        plain = {"checkpoint": {"type": "CheckpointHook", "interval": 1}}
        cfg.default_hooks = ConfigDict(plain | cfg.get("default_hooks", {}))
        if cfg.default_hooks.checkpoint and cfg.default_hooks.checkpoint.type == "CheckpointHook":
            cfg.default_hooks.checkpoint.type = "MTLCheckpointHook"

    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise SystemExit("--auto-scale-lr: the config has no auto_scale_lr.base_batch_size")
        cfg.auto_scale_lr.enable = True

    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume

    if problem := missing_data(cfg):
        raise SystemExit(problem)
    if args.launcher != "none" and not torch.cuda.is_available():
        init_gloo(args.launcher)
        # Likewise MMEngine's DDP wrapper would ask for a CUDA device.
        wrapper = {
            "type": "MMDistributedDataParallel",
            "device_ids": None,
            "broadcast_buffers": False,
            "find_unused_parameters": cfg.get("find_unused_parameters", False),
        }
        cfg.model_wrapper_cfg = wrapper | cfg.get("model_wrapper_cfg", {})
    runner = RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
    try:
        runner.train()
    except (KeyError, ValueError) as error:
        if problem := broken_annotations(cfg):
            raise SystemExit(f"{problem}\n(found after {type(error).__name__}: {error})") from error
        raise


if __name__ == "__main__":
    main()
