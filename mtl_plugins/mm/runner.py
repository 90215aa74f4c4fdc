"""Parts of a run besides the optimizer wrapper, for every ``Runner``, whoever starts it."""

from __future__ import annotations

import inspect
import os
import subprocess
from collections.abc import Callable, Mapping, MutableMapping
from functools import wraps
from typing import Any

import torch
from mmengine import dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS, OPTIM_WRAPPERS
from mmengine.runner import Runner

from mtl_plugins.mm.data_check import check_runner, data_problem
from mtl_plugins.mm.hooks import IndicatorHook, MTLCheckpointHook
from mtl_plugins.mm.optim import MTLOptimWrapper
from mtl_plugins.mm.samplers import ISTABatchSampler

# Names that launchers other than PyTorch's give to RANK, WORLD_SIZE and LOCAL_RANK.
RANKS = {
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}


def is_mtl(optim_wrapper: Any) -> bool:
    """Tell whether an optimizer wrapper, built or as a config, is one of this package."""
    if isinstance(optim_wrapper, Mapping) and "type" not in optim_wrapper:
        return any(map(is_mtl, optim_wrapper.values()))
    if isinstance(optim_wrapper, Mapping):
        return _is_class(optim_wrapper["type"], MTLOptimWrapper, OPTIM_WRAPPERS)
    return isinstance(optim_wrapper, MTLOptimWrapper)


def prepare(run: MutableMapping[str, Any]) -> None:
    """Complete the arguments of a ``Runner``.

    With an optimizer wrapper of this package, checkpoints are written by ``MTLCheckpointHook``, and
    a batch sampler that allocates tasks gets the names in ``optim_wrapper.tasks``. Several
    processes on CPUs communicate by gloo.

    Args:
        run: Arguments by name, as the keys of a config; values are replaced, not changed.
    """
    wrapper = run.get("optim_wrapper")
    if is_mtl(wrapper):
        run["default_hooks"] = _with_our_checkpoints(run.get("default_hooks") or {})
        loader: Any = run.get("train_dataloader")
        batch_sampler = loader.get("batch_sampler") if isinstance(loader, Mapping) else None
        if isinstance(batch_sampler, Mapping) and isinstance(wrapper, Mapping):
            allocates = _is_class(batch_sampler["type"], ISTABatchSampler, DATA_SAMPLERS)
            if allocates and not batch_sampler.get("tasks"):
                tasks = list(wrapper.get("tasks") or ())
                batch_sampler = dict(batch_sampler) | {"tasks": tasks}
                run["train_dataloader"] = dict(loader) | {"batch_sampler": batch_sampler}
    if run.get("launcher", "none") != "none" and get_device() == "cpu":
        run["cfg"] = _on_gloo(run["launcher"], run.get("cfg"))


def _is_class(kind: Any, base: type, registry: Any) -> bool:
    """Tell whether the ``type`` of a config is a class or a subclass."""
    cls = registry.get(kind) if isinstance(kind, str) else kind
    return isinstance(cls, type) and issubclass(cls, base)


def _with_our_checkpoints(hooks: Mapping[str, Any]) -> dict[str, Any]:
    hooks = {"checkpoint": {"type": "CheckpointHook", "interval": 1}} | dict(hooks)
    hook = hooks["checkpoint"]
    if isinstance(hook, Mapping):
        cls = HOOKS.get(hook["type"]) if isinstance(hook["type"], str) else hook["type"]
        if cls is CheckpointHook:
            hooks["checkpoint"] = dict(hook) | {"type": MTLCheckpointHook.__name__}
    return hooks


def _on_gloo(launcher: str, cfg: Any) -> Config:
    """Start the process group on CPUs, and have MMEngine's DDP wrapper ask for no CUDA device.

    Args:
        launcher: Launcher that has set the environment.
        cfg: Whole config; None for an empty one.
    """
    if not torch.distributed.is_initialized():
        init_gloo(launcher)
    cfg = Config() if cfg is None else cfg
    wrapper = {
        "type": "MMDistributedDataParallel",
        "device_ids": None,
        "broadcast_buffers": False,
        "find_unused_parameters": cfg.get("find_unused_parameters", False),
    }
    cfg["model_wrapper_cfg"] = wrapper | dict(cfg.get("model_wrapper_cfg") or {})
    return cfg


def init_gloo(launcher: str) -> None:
    """Start the process group on CPUs, from the environment that ``launcher`` sets.

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


def close_group() -> None:
    """Close the process group, if there is one; its threads may abort a process at its end."""
    if dist.is_distributed():
        dist.barrier()
        torch.distributed.destroy_process_group()


def enter_runner() -> None:
    """Have every ``Runner`` begin with :func:`prepare`; repeated calls do nothing."""
    if not getattr(Runner, "is_prepared", False):
        Runner.is_prepared = True
        Runner.__init__ = _prepared(Runner.__init__)
        Runner.train = _checked(Runner.train)


def _prepared(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @wraps(init)
    def prepared(*args: Any, **kwargs: Any) -> None:
        run = signature.bind(*args, **kwargs)
        prepare(run.arguments)
        init(*run.args, **run.kwargs)

    return prepared


def _checked(train: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(train)
    def checked(self: Runner, *args: Any, **kwargs: Any) -> Any:
        if is_mtl(self.optim_wrapper):
            if problem := data_problem(self.cfg):
                raise ValueError(problem)
            self.register_hook(DataCheckHook())
            self.register_hook(IndicatorHook())
        return train(self, *args, **kwargs)

    return checked


class DataCheckHook(Hook):
    """Hook that checks data and model against each other, once both are built."""

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        check_runner(runner)
