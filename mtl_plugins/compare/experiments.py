"""The config of a comparison, read by its framework, before anything runs."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Experiment:
    """Config of a comparison, as far as the plan and the table need it.

    Attributes:
        framework: Key of :data:`~mtl_plugins.compare.frameworks.FRAMEWORKS`.
        config: Path of the config, absolute, or ``package::path``.
        tasks: Losses of each task; empty if the config names none.
        settings: Every setting by its dotted key, as text.
        metrics: Columns that the config asks for.
        single: Configs of tasks alone, by task.
        options: ``KEY=VALUE`` over the config.
        modules: Modules that Detectron2's command imports first.
        cfg: Whole config, of the framework's class.
    """

    framework: str
    config: str
    tasks: dict[str, Any]
    settings: dict[str, str]
    metrics: list[str] = field(default_factory=list)
    single: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    cfg: Any = None

    def alone(self, task: str) -> tuple[str, str, tuple[str, ...]]:
        """Return config, ``--mtl`` and options that train one task alone."""
        if task in self.single:
            return self.single[task], "", ()
        if self.framework == "openmmlab":
            return self.config, "sum+sta", (f"train_dataloader.batch_sampler.only={task}",)
        return self.config, "sum+sta", (f"MTL.ALLOCATION.ONLY={task}",)


def load(
    config: str, methods: Sequence[str], options: Sequence[str], modules: Sequence[str] = ()
) -> Experiment:
    """Read a config, of OpenMMLab or, by its ending, of Detectron2, and check methods and data.

    Args:
        config: Path of the config.
        methods: Names for ``--mtl``, ``+`` between names that combine.
        options: ``KEY=VALUE`` over the config.
        modules: Modules that Detectron2's command imports first.

    Raises:
        SystemExit: Config, options, methods or data are at fault; the message says how.
    """
    if "::" not in config:
        if not Path(config).is_file():
            raise SystemExit(f"config: there is no file {config!r}")
        config = str(Path(config).resolve())
    for option in options:
        if "=" not in option:
            raise SystemExit(f"--cfg-options: expected KEY=VALUE, got {option!r}")
    if config.endswith((".yaml", ".yml")):
        return _detectron2(config, methods, options, modules)
    return _openmmlab(config, methods, options)


def _openmmlab(config: str, methods: Sequence[str], options: Sequence[str]) -> Experiment:
    from mmengine.config import Config, DictAction
    from mmengine.hub import get_config

    from mtl_plugins.mm.data_check import data_problem
    from mtl_plugins.mm.train import lay_over

    cfg = get_config(config) if "::" in config else Config.fromfile(config)
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={})
    given = parser.parse_args(["--cfg-options", *options] if options else [])
    cfg.merge_from_dict(given.cfg_options)
    for method in methods:
        lay_over(copy.deepcopy(cfg), method)
    if problem := data_problem(cfg):
        raise SystemExit(problem)
    tasks = dict(cfg.optim_wrapper.get("tasks") or {})
    compare = cfg.get("compare", {})
    single = _own_configs(config, tasks, compare.get("single_task", {}), ".py")
    settings = dict(_flat(cfg.to_dict()))
    for task, path in single.items():
        own = dict(_flat(Config.fromfile(path).to_dict()))
        settings |= {f"single_task.{task}.{key}": value for key, value in own.items()}
    return Experiment(
        "openmmlab",
        config,
        tasks,
        settings,
        list(compare.get("metrics", [])),
        single,
        tuple(options),
        cfg=cfg,
    )


def _detectron2(
    config: str, methods: Sequence[str], options: Sequence[str], modules: Sequence[str]
) -> Experiment:
    from importlib import import_module

    from detectron2.config import get_cfg

    from mtl_plugins.d2 import add_mtl_config, merge_options
    from mtl_plugins.d2.config import tasks_of
    from mtl_plugins.d2.data import missing_data
    from mtl_plugins.d2.overlay import lay_over

    for name in modules:
        import_module(name)
    cfg = get_cfg()
    add_mtl_config(cfg)
    cfg.merge_from_file(config)
    try:
        merge_options(cfg, [word for option in options for word in option.split("=", 1)])
    except (KeyError, ValueError) as error:
        raise SystemExit(error.args[0]) from error
    for method in methods:
        lay_over(cfg.clone(), method)
    if problem := missing_data(cfg):
        raise SystemExit(problem)
    tasks = tasks_of(cfg)
    return Experiment(
        "detectron2",
        config,
        tasks,
        dict(_flat(cfg)),
        list(cfg.MTL.COMPARE.METRICS),
        _own_configs(config, tasks, cfg.MTL.COMPARE.SINGLE_TASK, ".yaml"),
        tuple(options),
        tuple(modules),
        cfg=cfg,
    )


def _own_configs(
    config: str, tasks: Mapping[str, Any], named: Mapping[str, str], ending: str
) -> dict[str, str]:
    """Find the configs of single tasks: named by the config, or ``<config>_<task>`` beside it.

    Raises:
        SystemExit: A config that is named is not there.
    """
    if "::" in config:
        if named:
            raise SystemExit(
                f"compare.single_task: a config of a package, {config}, names no files beside it; "
                "inherit from it in a file of your own"
            )
        return {}
    folder, stem = Path(config).parent, Path(config).stem
    beside = {task: folder / f"{stem}_{task}{ending}" for task in tasks}
    found = {task: str(path) for task, path in beside.items() if path.is_file()}
    for task, path in named.items():
        if not (folder / path).is_file():
            raise SystemExit(
                f"compare.single_task.{task} (MTL.COMPARE.SINGLE_TASK.{task}): there is no file "
                f"{str(folder / path)!r}"
            )
        found[task] = str((folder / path).resolve())
    return found


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every setting of nested dicts and lists by its dotted key, as text."""
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, (list, tuple)) and node:
        for number, value in enumerate(node):
            yield from _flat(value, f"{key}.{number}")
    else:
        yield key, repr(node)
