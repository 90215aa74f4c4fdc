"""Conflicts of the task gradients in each layer, counted over a training run (Recon)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtl_plugins.distributed import average
from mtl_plugins.gradients import TaskRows, widened
from mtl_plugins.state import check_keys

FILE = "layer_conflicts.json"
"""Name of the record in the folder of a run."""


class LayerConflicts:
    r"""Score of each shared layer: how often the gradients of two tasks conflicted there.

    The score is the number of pairs of tasks and steps at which :math:`\cos(g_i, g_j) < S`, where
    :math:`g_i` is the gradient of task i on all parameters of the layer (`Shi et al. 2023,
    definition 3 and algorithm 1 <https://arxiv.org/abs/2302.11289>`_). A layer is a module with
    parameters of its own: a convolution with its bias, a norm. A task without a gradient
    there conflicts with none.

    Args:
        model: Model that has the layers.
        threshold: Cosine :math:`S` below which two gradients conflict.

    Attributes:
        steps: Number of steps that were counted.

    Raises:
        ValueError: The threshold is no cosine.
    """

    def __init__(self, model: nn.Module, threshold: float = 0.0) -> None:
        if not -1.0 <= threshold <= 1.0:
            raise ValueError(f"threshold: expected a cosine in [-1, 1], got {threshold!r}")
        self.threshold, self.steps = threshold, 0
        self._layer = {
            id(p): name for name, part in model.named_modules() for p in part._parameters.values()
        }
        self._counts: dict[str, Tensor] = {}  # on the device of the layer

    def add(self, rows: TaskRows, averaged: bool) -> None:
        """Count the conflicts of a step.

        Args:
            rows: Gradients of the parameters that tasks share.
            averaged: Whether ``rows`` are averaged over the ranks; if not, their inner products
                are, here.
        """
        products: dict[str, Tensor] = {}
        for leaf, part in zip(rows.leaves, rows.by_leaf(), strict=True):
            name = self._layer.get(id(leaf))
            if name is not None:
                wide = widened(part)
                found = wide @ wide.T
                products[name] = products[name] + found if name in products else found
        self.steps += 1
        if not products:
            return
        gramians = torch.stack(list(products.values()))
        gramians = gramians if averaged else average(gramians)
        lengths = gramians.diagonal(dim1=1, dim2=2).sqrt()
        cosines = gramians / (lengths[:, :, None] * lengths[:, None, :])
        conflicts = (cosines < self.threshold).triu(1).sum((1, 2))  # 0 / 0 is below nothing
        for name, count in zip(products, conflicts, strict=True):
            self._counts[name] = (
                self._counts[name].to(count) + count if name in self._counts else count
            )

    def scores(self) -> dict[str, int]:
        """Return the score of each layer that tasks shared, the highest first."""
        names = list(self._counts)
        values = torch.stack([self._counts[n] for n in names]).tolist() if names else []
        return dict(sorted(zip(names, values, strict=True), key=lambda pair: -pair[1]))

    def state_dict(self) -> dict[str, Any]:
        """Return the threshold, the scores and the number of steps."""
        return {"threshold": self.threshold, "steps": self.steps, "scores": self.scores()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: The state was counted with another threshold, or by another version.
        """
        check_keys("the conflicts of layers", state, self.state_dict())
        if state["threshold"] != self.threshold:
            raise ValueError(
                f"threshold: the conflicts were counted with {state['threshold']}, this run has "
                f"{self.threshold}"
            )
        self.steps = state["steps"]
        self._counts = {name: torch.tensor(score) for name, score in state["scores"].items()}

    def write(self, folder: str | Path, tasks: Sequence[str]) -> Path:
        """Write the record into the folder of a run.

        Args:
            folder: Folder.
            tasks: Names of the tasks.

        Returns:
            The file, which ``tools/recon.py`` reads.
        """
        path = Path(folder) / FILE
        path.write_text(json.dumps({"tasks": list(tasks), **self.state_dict()}, indent=1) + "\n")
        return path


def read_record(path: str | Path) -> dict[str, Any]:
    """Read what :meth:`LayerConflicts.write` wrote.

    Raises:
        ValueError: The file is no such record.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        scores, tasks = dict(record["scores"]), list(record["tasks"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no record of LayerConflictHook ({error})") from error
    if not scores:
        raise ValueError(f"{path}: the record has no layer; the tasks {tasks} shared none")
    return record
