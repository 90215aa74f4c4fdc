"""Memories of a method, by the number of the task, that survive a restart."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_plugins.aggregation.solvers import Vector

logger = logging.getLogger(__name__)


class RowMemory:
    """One vector ``[D]`` a task, such as a running mean of its gradient.

    Where ``D`` changes, because parameters turned out to be shared or joined the optimizer, the
    columns would not mean the same: all is forgotten, with a warning.
    """

    def __init__(self) -> None:
        self._rows: dict[int, Tensor] = {}

    def get(self, tasks: Sequence[int], like: Tensor) -> Tensor:
        """Return the rows of some tasks, zero for a task without one.

        Args:
            tasks: Numbers of the ``n`` tasks.
            like: Tensor ``[n, D]`` with the dtype and device of the result.
        """
        width = like.shape[1]
        if any(row.numel() != width for row in self._rows.values()):
            logger.warning("what the tasks share has changed; remembered gradients are dropped")
            self._rows.clear()
        result = torch.zeros_like(like)
        for row, task in zip(result, tasks, strict=True):
            if task in self._rows:
                row.copy_(self._rows[task])
        return result

    def keep(self, tasks: Sequence[int], rows: Tensor) -> None:
        """Keep rows ``[n, D]``, which must not change afterwards."""
        self._rows |= dict(zip(tasks, rows.unbind(), strict=True))

    def state_dict(self) -> dict[int, Tensor]:
        """Return a copy of each row."""
        return {task: row.clone() for task, row in self._rows.items()}

    def load_state_dict(self, state: Mapping[int, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._rows = dict(state)


class Shares:
    """One share a task, which sum to 1 over the tasks that take part."""

    def __init__(self) -> None:
        self._shares: dict[int, float] = {}

    def of(self, tasks: Sequence[int]) -> Vector:
        """Return the shares of some tasks; a task without one has the mean."""
        found = [self._shares.get(t, 1.0 / len(tasks)) for t in tasks]
        total = sum(found)
        return [s / total for s in found] if total > 0.0 else [1.0 / len(tasks)] * len(tasks)

    def keep(self, tasks: Sequence[int], shares: Vector) -> None:
        """Keep the shares of some tasks."""
        self._shares |= dict(zip(tasks, shares, strict=True))

    def state_dict(self) -> dict[int, float]:
        """Return the shares."""
        return dict(self._shares)

    def load_state_dict(self, state: Mapping[int, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._shares = dict(state)


def in_single(jacobian: Tensor) -> Tensor:
    """Return the gradients in single precision at least, the dtype of what is remembered."""
    return jacobian.to(torch.promote_types(jacobian.dtype, torch.float32))
