"""UPGrad: no task's part of the update works against another task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtl_plugins.aggregation.base import GramianAggregator
from mtl_plugins.aggregation.solvers import (
    Matrix,
    Vector,
    correlation,
    nonnegative_qp,
    regularised,
)


class UPGrad(GramianAggregator):
    r"""Unconflicting projection of gradients (Quinton and Rey 2024, section 3).

    Paper: `arXiv 2406.16232 <https://arxiv.org/abs/2406.16232>`_.

    .. math:: d = \tfrac1T \sum_i \pi(g_i), \qquad
              \pi(g_i) = \arg\min_v \|v - g_i\| \quad \text{s.t.} \quad J v \ge 0

    The projection onto the dual cone of the rows is :math:`g_i + \sum_t z_t g_t` with the
    :math:`z \ge 0` that minimises :math:`\tfrac12 z^\top G z + (G e_i)^\top z`. The program is
    solved exactly, for unit gradients, whose coefficients differ by a factor a task.
    """

    scale = "mean"

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        cosines, norms = correlation(gramian)
        active = [t for t, n in enumerate(norms) if n > 0.0]
        a = regularised([[cosines[s][t] for t in active] for s in active], eps)
        weights = [1.0 / len(norms)] * len(norms)
        for i in active:
            z = nonnegative_qp(a, [-cosines[i][t] for t in active])
            for t, z_t in zip(active, z, strict=True):
                weights[t] += z_t * (norms[i] / norms[t]) / len(norms)
        return weights
