"""DualProj: the mean gradient, moved as little as it takes to harm no task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtl_plugins.aggregation.base import GramianAggregator
from mtl_plugins.aggregation.solvers import (
    Matrix,
    Vector,
    correlation,
    dot,
    nonnegative_qp,
    regularised,
)


class DualProj(GramianAggregator):
    r"""Projection of the mean onto the dual cone (Lopez-Paz and Ranzato 2017, eq. 8 to 11).

    Paper: `arXiv 1706.08840 <https://arxiv.org/abs/1706.08840>`_.

    .. math:: d = \arg\min_v \|v - g_0\| \quad \text{s.t.} \quad J v \ge 0, \qquad
              g_0 = \tfrac1T \sum_t g_t

    The solution is :math:`g_0 + \sum_t z_t g_t` with the :math:`z \ge 0` that minimises
    :math:`\tfrac12 z^\top G z + (J g_0)^\top z`; solved exactly, for unit gradients. Where no task
    conflicts with the mean, the update is the mean; :class:`UPGrad` projects each gradient by
    itself instead.
    """

    scale = "mean"

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        cosines, norms = correlation(gramian)
        active = [t for t, n in enumerate(norms) if n > 0.0]
        weights = [1.0 / len(norms)] * len(norms)
        if not active:
            return weights
        longest = max(norms)
        among = [[cosines[s][t] for t in active] for s in active]
        mean = [norms[t] / longest / len(norms) for t in active]  # for unit gradients, scaled
        z = nonnegative_qp(regularised(among, eps), [-dot(row, mean) for row in among])
        for t, z_t in zip(active, z, strict=True):
            weights[t] += z_t * (longest / norms[t])
        return weights
