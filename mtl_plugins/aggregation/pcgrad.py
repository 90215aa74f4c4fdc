"""PCGrad: project conflicting task gradients onto each other's normal planes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtl_plugins.aggregation.base import RandomAggregator
from mtl_plugins.aggregation.solvers import Matrix, Vector, dot


class PCGrad(RandomAggregator):
    r"""Gradient surgery (`Yu et al. 2020, algorithm 1 <https://arxiv.org/abs/2001.06782>`_).

    Starting from :math:`v_i = g_i`, for every other task j in random order,

    .. math:: v_i \leftarrow v_i - \frac{\min(v_i \cdot g_j, 0)}{\|g_j\|^2} g_j,
              \qquad d = \sum_i v_i

    always against the original :math:`g_j`. Since :math:`v_i` stays in the span of the task
    gradients, its coefficients and the Gramian are all that is needed.

    Args:
        seed: Seed of the orders; None takes the seed of the run.
    """

    scale = "sum"

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        total = [0.0] * len(gramian)
        for i, others in enumerate(self.orders(len(gramian))):
            v = [0.0] * len(gramian)
            v[i] = 1.0
            for j in others:
                product = dot(gramian[j], v)
                if product < 0.0 < gramian[j][j]:
                    v[j] -= product / gramian[j][j]
            total = [a + b for a, b in zip(total, v, strict=True)]
        return total
