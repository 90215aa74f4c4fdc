"""The ``MTL`` node of a config, and what is built from it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

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

# Those that are the same word in the config and of MultiTaskBackward.
OPTIONS = ("LEVEL", "SYNC", "LOW_MEMORY", "WEIGHTS_EVERY", "ON_NONFINITE", "MAX_SKIPS")
_KEYS = (*OPTIONS, "TASKS", "AGGREGATOR", "WEIGHTING", "REGULARIZER", "REPRESENTATION")


def add_mtl_config(cfg: CfgNode) -> None:
    """Adds the node ``MTL``, with which the trainers do what Detectron2's do.

    Arguments of a method are keys beside its name, in upper case: ``MTL.AGGREGATOR.NAME CAGrad
    MTL.AGGREGATOR.C 0.5``. None, which all have at first, leaves the method's default. A method
    that is registered before this is called has its keys, too.

    yacs knows no dicts as values; where one is due, it is text as in a YAML file, such as
    ``MTL.WEIGHTING.WEIGHTS "{detection: 1.0, mask: 0.5}"``, and a whole method can be one as well:
    ``MTL.AGGREGATOR.NAME "{type: MCLGS, base: {type: CAGrad, c: 0.4}}"``.

    Args:
        cfg: Of Detectron2, not frozen.
    """
    cfg.MTL = mtl = CfgNode()
    # Names of the losses of each task, shell patterns allowed: {mask: [loss_mask], ...}. Without
    # any, every loss is a task. An empty list takes a task of the base config away.
    mtl.TASKS = CfgNode(new_allowed=True)
    mtl.AGGREGATOR = _method(AGGREGATORS, "Sum")
    mtl.WEIGHTING = _method(WEIGHTINGS)
    mtl.REGULARIZER = _method(REGULARIZERS)
    # At the level "feature", the tasks share what the module at this path of the model returns.
    mtl.LEVEL = "parameter"
    mtl.REPRESENTATION = "backbone"
    mtl.SYNC = "exact"
    mtl.LOW_MEMORY = False
    mtl.WEIGHTS_EVERY = 1
    mtl.ON_NONFINITE = "skip"
    mtl.MAX_SKIPS = 20
    # Which image trains which task: "" (every one all of them), "STA" or "ISTA".
    mtl.ALLOCATION = CfgNode({"NAME": "", "TASKS_PER_SAMPLE": 1, "GAP": 1})
    # What is logged, and every how many iterations; 0 for never. "fd" is of the representation.
    mtl.MONITOR = CfgNode({"INTERVAL": 20, "MEASURES": ["gds", "gms", "angles"]})


def config_file(name: str) -> str:
    """Return the path of a YAML config that comes with the package, for ``merge_from_file``.

    In the list of bases of a YAML file of one's own, the tag of PyYAML calls it:
    ``!!python/object/apply:mtl_plugins.d2.config_file ["mtl/pcgrad.yaml"]``.

    Args:
        name: Path in the package's ``detectron2`` configs, such as ``"mtl/pcgrad.yaml"``.

    Raises:
        FileNotFoundError: There is none of that name; the message has the nearest ones.
    """
    folder = configs() / "detectron2"
    if not (folder / name).is_file():
        known = (str(path.relative_to(folder)) for path in sorted(folder.rglob("*.yaml")))
        raise FileNotFoundError(f"no config is called {name!r}; {suggest(name, known)}")
    return str(folder / name)


def _method(registry: Mapping[str, type], name: str = "") -> CfgNode:
    """A node for one of some methods, with a key for each argument that one of them takes."""
    # A wrong key in a file is to come as far as the method, whose error names the right ones.
    node = CfgNode({"NAME": name}, new_allowed=True)
    for cls in registry.values():
        for argument in inspect.signature(cls).parameters.values():
            if argument.kind is not argument.VAR_KEYWORD:
                node.setdefault(argument.name.upper(), None)
    return node


def tasks_of(cfg: CfgNode) -> dict[str, Any]:
    """The losses of each task: a config cannot take a key of its base away, but empty it."""
    return {task: losses for task, losses in cfg.MTL.TASKS.items() if losses}


def build_groups(cfg: CfgNode) -> TaskGroups:
    """Which losses make which task."""
    with naming_keys():
        return TaskGroups(tasks_of(cfg) or None)


def build_multitask(
    cfg: CfgNode, model: nn.Module, params: Sequence[nn.Parameter], groups: TaskGroups
) -> MultiTaskBackward:
    """What takes the place of ``losses.backward()``.

    Args:
        cfg: With the node that :func:`add_mtl_config` adds.
        model: Has the representation.
        params: To train.
        groups: Which losses make which task.

    Raises:
        KeyError, TypeError, ValueError: What is wrong with the config, in its terms.
    """
    mtl = cfg.MTL
    options: dict[str, Any] = {key.lower(): mtl[key] for key in OPTIONS}
    if mtl.LEVEL == "feature":
        options["representation"] = find_module(model, mtl.REPRESENTATION, "MTL.REPRESENTATION")
    with naming_keys():
        return MultiTaskBackward(
            params,
            aggregator=build_aggregator(_arguments(mtl.AGGREGATOR) or "Sum"),
            weighting=build_weighting(w) if (w := _arguments(mtl.WEIGHTING)) else None,
            regularizer=build_regularizer(r) if (r := _arguments(mtl.REGULARIZER)) else None,
            tasks=groups.names,
            total_steps=cfg.SOLVER.MAX_ITER,
            **options,
        )


def _arguments(node: CfgNode) -> dict[str, Any] | None:
    """``dict(type=name, ...)`` of a node that has a name."""
    name = _value("NAME", node.NAME)
    if not name:
        return None
    given = {k.lower(): _value(k, v) for k, v in node.items() if k != "NAME" and v is not None}
    return given | (dict(name) if isinstance(name, Mapping) else {"type": name})


def _value(key: str, value: Any) -> Any:
    """A dict is written as text, since yacs has none."""
    if not (isinstance(value, str) and value.lstrip().startswith("{")):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"{key}: {value!r} is no dict in YAML, such as '{{a: 1.0}}'") from error


@contextmanager
def naming_keys() -> Iterator[None]:
    """Has an error of the core, which names one of its options, name the key of the config."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        text = str(error.args[0]) if error.args else ""
        found = re.match(rf"({'|'.join(_KEYS).lower()})\b(\.type)?", text)
        if found is None:
            raise
        key = f"MTL.{found[1].upper()}{'.NAME' if found[2] else ''}"
        raise type(error)(key + text[found.end() :]) from error


def unknown_key(cfg: CfgNode, options: Sequence[str]) -> str | None:
    """The first key of a command line that the config does not have, in words for its user.

    Args:
        options: Keys and values in turn.
    """
    for key in options[::2]:
        node, known = cfg, ""
        for part in key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                return f"{key}: {known or 'the config'} has no {part!r}; {suggest(part, node)}"
            node, known = node[part], f"{known}.{part}".lstrip(".")
    return None
