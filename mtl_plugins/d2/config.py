"""Node ``MTL`` of a config, and the objects that are built from the node."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from torch import nn

from mtl_plugins import MultiTaskBackward, configs
from mtl_plugins.aggregation import AGGREGATORS, build_aggregator
from mtl_plugins.features import find_module
from mtl_plugins.registry import suggest
from mtl_plugins.regularization import REGULARIZERS, build_regularizer
from mtl_plugins.tasks import TaskGroups
from mtl_plugins.weighting import WEIGHTINGS, build_weighting

# Options of MultiTaskBackward that are the same word in the config.
OPTIONS = (
    "LEVEL",
    "HEADS",
    "SCALE",
    "SYNC",
    "LOW_MEMORY",
    "GRAMIAN",
    "SKETCH_ROWS",
    "WEIGHTS_EVERY",
    "ON_NONFINITE",
    "MAX_SKIPS",
)
METHODS = ("AGGREGATOR", "WEIGHTING", "REGULARIZER")
_KEYS = (*OPTIONS, *METHODS, "TASKS", "OPTIONAL_LOSSES", "REPRESENTATION", "LAYERS")


def add_mtl_config(cfg: CfgNode) -> None:
    """Add the node ``MTL``, with which the trainers do what Detectron2's do.

    Arguments of a method are keys beside its name, in upper case: ``MTL.AGGREGATOR.NAME CAGrad
    MTL.AGGREGATOR.C 0.5``. None, the first value of every key, leaves the method's default. A
    method that is registered before this function is called has its keys, too.

    yacs knows no dicts as values; a dict is written as text as in a YAML file, such as
    ``MTL.WEIGHTING.WEIGHTS "{detection: 1.0, mask: 0.5}"``, and a whole method can be a dict, too:
    ``MTL.AGGREGATOR.NAME "{type: MCLGS, base: {type: CAGrad, c: 0.4}}"``. On a command line
    :func:`merge_options` takes ``MTL.TASKS`` in the same way.

    Args:
        cfg: Config of Detectron2, not frozen.
    """
    cfg.MTL = mtl = CfgNode()
    # Names of the losses of each task, shell patterns allowed: {mask: [loss_mask], ...}. Without
    # tasks here, every loss is a task. An empty list takes a task of the base config away.
    mtl.TASKS = CfgNode(new_allowed=True)
    # Losses that the model has on some batches only, shell patterns allowed, beside the losses in
    # the model's own attribute ``optional_losses``.
    mtl.OPTIONAL_LOSSES = []
    mtl.AGGREGATOR = _method(AGGREGATORS, "Sum")
    mtl.WEIGHTING = _method(WEIGHTINGS)
    mtl.REGULARIZER = _method(REGULARIZERS)
    # At the level "feature", the tasks share what the module at this path of the model returns.
    mtl.LEVEL = "parameter"
    mtl.REPRESENTATION = "backbone"
    # At the level "layers", the gradients of the module at this path decide.
    mtl.LAYERS = ""
    mtl.HEADS = "own"
    mtl.SCALE = "own"
    mtl.SYNC = "exact"
    mtl.LOW_MEMORY = False
    mtl.GRAMIAN = "exact"
    mtl.SKETCH_ROWS = 64
    mtl.WEIGHTS_EVERY = 1
    mtl.ON_NONFINITE = "skip"
    mtl.MAX_SKIPS = 20
    # Policy by which an image trains tasks: "" (every image trains all tasks), "STA" or "ISTA".
    # ONLY is the one task that all images train, for a single-task baseline.
    mtl.ALLOCATION = CfgNode({"NAME": "", "TASKS_PER_SAMPLE": 1, "GAP": 1, "ONLY": ""})
    # Measures that are logged, every INTERVAL iterations; 0 for never. "fd" is of REPRESENTATION.
    mtl.MONITOR = CfgNode({"INTERVAL": 20, "MEASURES": ["gds", "gms", "angles"]})
    # Whether to count, at every step, the pairs of tasks whose gradients in a layer have a cosine
    # below the threshold, into layer_conflicts.json, which tools/recon.py reads.
    mtl.MONITOR.LAYERS = False
    mtl.MONITOR.LAYER_THRESHOLD = 0.0
    # Columns of mtl-compare, "NAME=TASK:high" or "NAME=TASK:low", and configs of single tasks.
    mtl.COMPARE = CfgNode({"METRICS": [], "SINGLE_TASK": CfgNode(new_allowed=True)})


def config_file(name: str) -> str:
    """Return the path of a YAML config that comes with the package, for ``merge_from_file``.

    In the list of bases of a YAML file of one's own, a tag of PyYAML calls this function:
    ``!!python/object/apply:mtl_plugins.d2.config_file ["mtl/pcgrad.yaml"]``.

    Args:
        name: Path in the package's ``detectron2`` configs, such as ``"mtl/pcgrad.yaml"``.

    Raises:
        FileNotFoundError: No config has that name; the message has the nearest names.
    """
    folder = configs() / "detectron2"
    if not (folder / name).is_file():
        known = (str(path.relative_to(folder)) for path in sorted(folder.rglob("*.yaml")))
        raise FileNotFoundError(f"no config is called {name!r}; {suggest(name, known)}")
    return str(folder / name)


def _method(registry: Mapping[str, type], name: str = "") -> CfgNode:
    """Return the node of the registry, with a key for each argument that some method takes."""
    # A wrong key in a file is to come as far as the method, whose error names the right ones.
    node = CfgNode({"NAME": name}, new_allowed=True)
    for cls in registry.values():
        for argument in inspect.signature(cls).parameters.values():
            if argument.kind is not argument.VAR_KEYWORD:
                node.setdefault(argument.name.upper(), None)
    return node


def tasks_of(cfg: CfgNode) -> dict[str, Any]:
    """Return the losses of each task, without tasks whose list is empty."""
    return {task: losses for task, losses in cfg.MTL.TASKS.items() if losses}


def build_groups(cfg: CfgNode) -> TaskGroups:
    """Build the groups that say which losses make which task."""
    with naming_keys():
        return TaskGroups(tasks_of(cfg) or None, cfg.MTL.OPTIONAL_LOSSES)


def build_multitask(
    cfg: CfgNode,
    model: nn.Module,
    params: Sequence[nn.Parameter] | torch.optim.Optimizer,
    groups: TaskGroups,
) -> MultiTaskBackward:
    """Build the object that takes the place of ``losses.backward()``.

    Args:
        cfg: Config with the node that :func:`add_mtl_config` adds.
        model: Model that has the representation.
        params: Parameters to train, or their optimizer.
        groups: Losses of each task.

    Raises:
        KeyError, TypeError, ValueError: The config is wrong; the message names its key.
    """
    mtl = cfg.MTL
    options: dict[str, Any] = {key.lower(): mtl[key] for key in OPTIONS}
    if mtl.LEVEL == "feature":
        options["representation"] = find_module(model, mtl.REPRESENTATION, "MTL.REPRESENTATION")
    if mtl.LAYERS:
        options["layers"] = find_module(model, mtl.LAYERS, "MTL.LAYERS")
    with naming_keys():
        aggregator, weighting, regularizer = (_arguments(mtl, key) for key in METHODS)
        if aggregator is None:
            raise ValueError(
                f"aggregator.type: no method is named; the plain sum is 'Sum'. Valid: "
                f"{', '.join(AGGREGATORS)}"
            )
        return MultiTaskBackward(
            params,
            aggregator=build_aggregator(aggregator),
            weighting=weighting and build_weighting(weighting),
            regularizer=regularizer and build_regularizer(regularizer),
            tasks=groups.names,
            total_steps=cfg.SOLVER.MAX_ITER,
            **options,
        )


def _arguments(mtl: CfgNode, method: str) -> dict[str, Any] | None:
    """Return ``dict(type=name, ...)`` of the node of a method; None if the node names no method."""
    given = {}
    for key, value in mtl[method].items():
        path = f"MTL.{method}.{key}"
        if key != key.upper():
            raise KeyError(f"{path}: keys are in upper case: MTL.{method}.{key.upper()}")
        if value is not None:
            given[key.lower()] = _value(path, value)
    name = given.pop("name", None)
    if not name and given:
        raise ValueError(
            f"MTL.{method}.NAME: no method is named, but MTL.{method} has {sorted(given)}"
        )
    return given | (dict(name) if isinstance(name, Mapping) else {"type": name}) if name else None


def _value(key: str, value: Any) -> Any:
    """Return the dict that a text in braces is in YAML, as yacs has no dicts; else the value."""
    if not (isinstance(value, str) and value.lstrip().startswith("{")):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"{key}: {value!r} is no dict in YAML, such as '{{a: 1.0}}'") from error


@contextmanager
def naming_keys() -> Iterator[None]:
    """Make an error of the core, which names an option, name the key of the config instead."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        text = str(error.args[0]) if error.args else ""
        found = re.match(rf"(--resume: )?({'|'.join(_KEYS).lower()})\b(\.\w+)?", text)
        if found is None:
            raise
        before, key, part = found[1] or "", found[2].upper(), found[3] or ""
        if key in METHODS:
            part = ".NAME" if part == ".type" else part.upper()
        raise type(error)(f"{before}MTL.{key}{part}{text[found.end() :]}") from error


def merge_options(cfg: CfgNode, options: Sequence[Any]) -> None:
    """Merge keys and values of a command line, as ``cfg.merge_from_list`` does, new tasks too.

    ``MTL.TASKS "{box: [loss_cls, loss_box_reg], mask: loss_mask}"`` takes the place of the tasks
    of the config; ``MTL.TASKS.mask "[loss_mask]"`` adds or exchanges one task.

    Args:
        cfg: Config with the node that :func:`add_mtl_config` adds, not frozen.
        options: Keys and values in turn.

    Raises:
        KeyError: The config has no such key.
        ValueError: A key has no value, or a value of the wrong type.
    """
    if len(options) % 2:
        raise ValueError(f"{options[-1]}: has no value; keys and values come in turn")
    for key, value in zip(options[::2], options[1::2], strict=True):
        if key == "MTL.TASKS":
            tasks = _parsed(key, value)
            if not isinstance(tasks, Mapping):
                raise ValueError(f"{key}: {value!r} is no dict in YAML, such as '{{a: [loss_a]}}'")
            cfg.MTL.TASKS = CfgNode(dict(tasks), new_allowed=True)
        elif key.startswith("MTL.TASKS."):
            cfg.MTL.TASKS[key.removeprefix("MTL.TASKS.")] = _parsed(key, value)
        elif problem := missing_key(cfg, key):
            raise KeyError(problem)
        else:
            cfg.merge_from_list([key, value])


def _parsed(key: str, value: Any) -> Any:
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise ValueError(f"{key}: {value!r} is no YAML") from error


def missing_key(cfg: CfgNode, key: str) -> str | None:
    """Return how far the config knows a key that is not in it; None if the key is in it."""
    node, known = cfg, ""
    for part in key.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return f"{key}: {known or 'the config'} has no {part!r}; {suggest(part, node)}"
        node, known = node[part], f"{known}.{part}".lstrip(".")
    return None
