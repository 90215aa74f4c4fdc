"""Plain sum and mean of the task losses: the baselines."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtl_plugins.aggregation.base import GramianAggregator
from mtl_plugins.aggregation.solvers import Matrix, Vector


class Sum(GramianAggregator):
    """Plain sum of the losses, ``w_t = 1``: what every framework trains without this package.

    The method costs no extra backward pass.
    """

    scale = "sum"
    needs_gradients = False

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        return [1.0] * len(gramian)


class Mean(GramianAggregator):
    """Average of the losses, ``w_t = 1 / T``, task-specific parameters included.

    ``T`` is the number of tasks that take part in the step.

    The method costs no extra backward pass.
    """

    scale = "mean"
    needs_gradients = False

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        return [1.0 / len(gramian)] * len(gramian)
