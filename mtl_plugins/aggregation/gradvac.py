"""GradVac: raise each pair's cosine to what it usually is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_plugins.aggregation.base import RandomAggregator
from mtl_plugins.aggregation.solvers import Matrix, Vector, dot


class GradVac(RandomAggregator):
    r"""Gradient vaccine (Wang et al. 2021, eq. 2 and algorithm 1).

    Paper: `arXiv 2010.05874 <https://arxiv.org/abs/2010.05874>`_.

    The method is PCGrad with a target cosine :math:`\hat\phi_{ij}` of each pair, at first 0. Where
    :math:`\phi = \cos(v_i, g_j)` is below the target,

    .. math:: v_i \leftarrow v_i + \frac{\|v_i\| (\hat\phi \sqrt{1 - \phi^2}
              - \phi \sqrt{1 - \hat\phi^2})}{\|g_j\| \sqrt{1 - \hat\phi^2}} g_j

    and then :math:`\hat\phi \leftarrow (1 - \beta) \hat\phi + \beta \phi`. The targets are part of
    the checkpoint.

    Args:
        beta: Share :math:`\beta` of each new cosine in the target.
        seed: Seed of the orders; None takes the seed of the run.

    """

    scale = "sum"

    def __init__(self, beta: float = 0.01, seed: int | None = None) -> None:
        super().__init__(seed)
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta lies in [0, 1], got {beta}")
        self.beta = beta
        self._target: Matrix = []

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"target": torch.tensor(self._target, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._target = state["target"].tolist()

    def _grow(self, tasks: int) -> None:
        for row in self._target:
            row.extend([0.0] * (tasks - len(row)))
        self._target.extend([0.0] * tasks for _ in range(tasks - len(self._target)))

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        self._grow(max(tasks) + 1)
        norms = [math.sqrt(max(row[t], 0.0)) for t, row in enumerate(gramian)]
        total = [0.0] * len(gramian)
        for i, others in enumerate(self.orders(len(gramian))):
            v = [0.0] * len(gramian)
            v[i] = 1.0
            norm_v = norms[i]
            products = gramian[i]
            target = self._target[tasks[i]]
            for j in others:
                norm_j = norms[j]
                if not norm_v or not norm_j:
                    continue
                phi = max(-1.0, min(1.0, products[j] / norm_v / norm_j))
                wanted = target[tasks[j]]
                if phi < wanted < 1.0:
                    step = (norm_v / norm_j) * (
                        wanted * math.sqrt((1.0 - phi * phi) / (1.0 - wanted * wanted)) - phi
                    )
                    v[j] += step
                    products = [p + step * g for p, g in zip(products, gramian[j], strict=True)]
                    norm_v = math.sqrt(max(dot(products, v), 0.0))
                target[tasks[j]] = (1.0 - self.beta) * wanted + self.beta * phi
            total = [a + b for a, b in zip(total, v, strict=True)]
        return total
