"""IMTL-G: an update that projects equally on every task gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_plugins.aggregation.base import GramianAggregator
from mtl_plugins.aggregation.solvers import Matrix, Vector, correlation, dot, ridge


class IMTLG(GramianAggregator):
    r"""Impartial gradients (`Liu et al. 2021, eq. 4 <https://openreview.net/forum?id=IMPnRXEWpvr>`_).

    The weights :math:`w \propto G^+ n` with :math:`n_t = \|g_t\|` are normalised to sum 1, so that
    :math:`d \cdot g_t / \|g_t\|` is the same for every task where the gradients are linearly
    independent. For two tasks, :math:`w_1 = n_2 / (n_1 + n_2)` at any angle. A weight may be
    negative, and the common projection as well, as in the paper.

    Eq. 4 has no bounded solution where the weights, before they are normalised, sum to almost 0: a
    mixture of tasks with negative weights, or more than two dependent gradients, for which
    :math:`G^+ n` is a least-squares solution. ``d`` is then scaled down to the length of the
    longest gradient, which keeps the projections equal; the weights sum to less than 1. Where the
    sum is rounding, or there is no gradient, the update is the mean. A zero row gets the weight 0.
    """

    scale = "mean"

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        size = len(gramian)
        cosines, norms = correlation(gramian)
        active = [t for t, n in enumerate(norms) if n > 0.0]
        weights = [0.0] * size
        among = [[cosines[s][t] for t in active] for s in active]
        lengths = [norms[t] for t in active]
        total, unit = self._equal_projections(among, lengths, eps)  # sum of w, and w_t n_t
        if abs(total) <= 1e-9 * sum(abs(u / n) for u, n in zip(unit, lengths, strict=True)):
            return [1.0 / size] * size
        # The length includes what rounding may add.
        square = dot(unit, [dot(row, unit) for row in among])
        square += ridge(size, eps) * dot(unit, unit)
        divisor = math.copysign(max(abs(total), math.sqrt(max(square, 0.0)) / max(norms)), total)
        for t, u, n in zip(active, unit, lengths, strict=True):
            weights[t] = u / n / divisor
        return weights

    @staticmethod
    def _equal_projections(cosines: Matrix, norms: Vector, eps: float) -> tuple[float, Vector]:
        """Solve for the weights up to a factor.

        Args:
            cosines: Cosines ``[T, T]`` of the task gradients.
            norms: Norms ``[T]`` of the task gradients, positive.
            eps: Relative rounding of the cosines.

        Returns:
            The sum of the weights, and each weight times the norm of its gradient, ``[T]``.
        """
        size = len(norms)
        shortest = min(norms, default=1.0)
        if size <= 2:  # also where the two are parallel
            unit = [shortest] * size
            return sum(shortest / n for n in norms), unit
        values, vectors = torch.linalg.eigh(torch.tensor(cosines, dtype=torch.float64))
        if values[0].item() > size * eps:
            # Solved on the cosines: in G itself the rounding of a long gradient hides a short one.
            unit = (vectors @ (vectors.sum(dim=0) / values) * shortest).tolist()
        else:
            n = torch.tensor(norms, dtype=torch.float64) / max(norms)
            g = torch.tensor(cosines, dtype=torch.float64) * n * n[:, None]
            w = torch.linalg.pinv(g, rtol=size * eps, hermitian=True) @ n
            unit = (w * n).tolist()
        return sum(u / n for u, n in zip(unit, norms, strict=True)), unit
