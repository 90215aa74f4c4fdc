"""The methods table: each config of ``_base_/mtl``, with the words of its classes."""

from __future__ import annotations

import inspect
import re
import runpy
from typing import Any, NamedTuple

import mtl_plugins
from mtl_plugins.aggregation import AGGREGATORS
from mtl_plugins.regularization import REGULARIZERS
from mtl_plugins.weighting import WEIGHTINGS, Weighting


class Row(NamedTuple):
    """One config, in the words of the table.

    Attributes:
        name: Name of the config, for ``--mtl``.
        scale: Scale of the aggregator, ``"sum"`` or ``"mean"``; ``"any"`` where it depends on an
            argument, ``"-"`` without an aggregator.
        level: Gradients that the method works on: ``"p"``, of the parameters, ``"f"``, of features.
        cost: Passes through the shared layers, forward and backward, at the parameter level.
        about: Name and first sentence of each class.
    """

    name: str
    scale: str
    level: str
    cost: str
    about: str


def methods() -> list[Row]:
    """Return a row for every config, sorted by name."""
    return [_row(path.stem) for path in sorted((mtl_plugins.configs() / "_base_/mtl").glob("*.py"))]


def table() -> str:
    """Return the rows as text, with a heading and a legend.

    Examples:
        >>> table().split()[:5]
        ['--mtl', 'scale', 'level', 'cost', 'method']
    """
    rows = [Row("--mtl", "scale", "level", "cost", "method"), *methods()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)), row[4]]
        )
        for row in rows
    ]
    legend = (
        "scale: what equal gradients g of T tasks give, T·g (sum) or g (mean); "
        "level: p parameters, f features (with +feature);\n"
        "cost: backward passes through what the tasks share, at the level p; at f all have 1;\n"
        "steps: further plain ones on the same batch. "
        "Names combine: uncertainty+pcgrad; options follow: cagrad:c=0.8."
    )
    return "\n".join([*lines, "", legend])


def parse_names(names: str) -> list[tuple[str, dict[str, str]]]:
    """Parse what ``--mtl`` takes: names joined by ``+``, each with options after colons.

    Examples:
        >>> parse_names("uncertainty+cagrad:c=0.8:rescale=0")
        [('uncertainty', {}), ('cagrad', {'c': '0.8', 'rescale': '0'})]

    Raises:
        SystemExit: An option is not ``KEY=VALUE``.
    """
    parsed = []
    for term in names.split("+"):
        name, *options = term.split(":")
        for option in options:
            if not re.match(r"\w[\w.]*=.", option):
                raise SystemExit(f"--mtl {term}: expected NAME:KEY=VALUE, got {option!r} as option")
        parsed.append((name, dict(option.split("=", 1) for option in options)))
    return parsed


def _row(name: str) -> Row:
    config = runpy.run_path(str(mtl_plugins.configs() / "_base_/mtl" / f"{name}.py"))
    wrapper = config["optim_wrapper"]
    scale, level, cost, about = "-", "p f", "1", []
    if part := wrapper.get("aggregator"):
        aggregator = AGGREGATORS[part["type"]]
        # A method around another has the scale of the inner one.
        base = part.get("base", part)["type"]
        scale = AGGREGATORS[base].scale
        if not isinstance(scale, str):  # a property: each method of TorchJD has one of its own
            scale = "any"
        at_parameters = aggregator.scales_own or not aggregator.of_features
        level = "f" if wrapper.get("level") else "p" if at_parameters else "p f"
        cost = "T" if aggregator.needs_gradients and level != "f" else "1"
        cost += " + steps" if aggregator.looks_ahead else ""
        about.append(_about(aggregator))
    if part := wrapper.get("weighting"):
        weighting = WEIGHTINGS[part["type"]]
        cost += _extra(weighting)
        about.append(_about(weighting))
    if part := wrapper.get("regularizer"):
        cost = "second order"
        about.append(_about(REGULARIZERS[part["type"]]))
    hooks = [hook["type"] for hook in config.get("custom_hooks", [])]
    if not about and "LayerConflictHook" in hooks:
        level, cost = "p", "T"
        about.append("laid over another method: counts the conflicts in each layer (Recon)")
    if not about and "task_norm" in config.get("model", {}):
        cost = "T"
        about.append("laid over another method: norms of each task's own (connection strength)")
    if not about:
        sampler: dict[str, Any] = config.get("train_dataloader", {}).get("batch_sampler", {})
        scale = "-"
        level = {"feature": "f", "layers": "p"}.get(wrapper.get("level"), "p f")
        about.append(
            f"{sampler['type'].removesuffix('BatchSampler')}: each image trains some of the tasks"
            if sampler
            else "laid over another method: gradients of the features decide"
            if level == "f"
            else "laid over another method: gradients of the neck's parameters decide"
        )
    return Row(name, scale, level, cost, "; ".join(about))


def _extra(weighting: type[Weighting]) -> str:
    """Return the cost of a weighting above its aggregator."""
    if weighting.needs_new_losses:
        return " + forward"
    return " + T heads" if weighting.needs_norms else ""


def _about(method: type) -> str:
    """Return the name of a class and the first sentence of its docstring, without links."""
    first = (inspect.getdoc(method) or "").split("\n\n")[0]
    plain = re.sub(r"`([^<`]+?)\s*<[^>]*>`_", r"\1", " ".join(first.split())).rstrip(".:")
    return f"{method.__name__}: {plain}"
