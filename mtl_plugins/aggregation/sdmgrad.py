"""SDMGrad: MGDA that is drawn towards the mean gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mtl_plugins.aggregation.base import GramianAggregator
from mtl_plugins.aggregation.memory import Shares
from mtl_plugins.aggregation.solvers import Matrix, Vector, dot, on_simplex


class SDMGrad(GramianAggregator):
    r"""Direction-oriented gradient descent (Xiao et al. 2023, algorithm 1).

    Paper: `arXiv 2305.18409 <https://arxiv.org/abs/2305.18409>`_.

    .. math:: \min_{w \in \Delta} \tfrac12 \| g_w + \lambda g_0 \|^2, \qquad
              d = \frac{g_w + \lambda g_0}{1 + \lambda}, \quad
              g_w = \sum_t w_t g_t, \quad g_0 = \tfrac1T \sum_t g_t

    is approached by some steps of projected gradient descent with momentum, from the :math:`w` of
    the step before, on gradients divided by their mean length. As in the authors' code the steps
    are long and few, so that :math:`w` is near the solution and not at it; more and shorter steps
    find it. The paper takes the gradients from three independent batches. Here all are of the
    step's one batch, as in the authors' code, whose three Jacobians are one tensor. The :math:`w`
    are part of the checkpoint.

    Args:
        lam: Pull :math:`\lambda` towards the mean; 0.3 in the authors' experiments.
        steps: Number of steps.
        lr: Step size.
        momentum: Momentum of the steps.
    """

    scale = "mean"

    def __init__(
        self, lam: float = 0.3, steps: int = 20, lr: float = 10.0, momentum: float = 0.5
    ) -> None:
        if lam < 0.0 or lr <= 0.0 or not 0.0 <= momentum < 1.0:
            raise ValueError(
                f"lam >= 0, lr > 0 and 0 <= momentum < 1, got {lam}, {lr} and {momentum}"
            )
        if steps < 1:
            raise ValueError(f"steps is at least 1, got {steps}")
        self.lam, self.steps, self.lr, self.momentum = lam, steps, lr, momentum
        self._shares = Shares()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"shares": self._shares.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._shares.load_state_dict(state["shares"])

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        size = len(gramian)
        w = self._shares.of(tasks)
        mean = sum(math.sqrt(max(row[t], 0.0)) for t, row in enumerate(gramian)) / size
        if mean > 0.0:
            scaled = [[g / mean / mean for g in row] for row in gramian]
            pull = [self.lam * sum(row) / size for row in scaled]
            velocity = [0.0] * size
            for _ in range(self.steps):
                slope = [dot(row, w) + p for row, p in zip(scaled, pull, strict=True)]
                velocity = [self.momentum * v + s for v, s in zip(velocity, slope, strict=True)]
                w = on_simplex([w_t - self.lr * v for w_t, v in zip(w, velocity, strict=True)])
            self._shares.keep(tasks, w)
        return [(w_t + self.lam / size) / (1.0 + self.lam) for w_t in w]
