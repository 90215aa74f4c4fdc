"""IMTL-G: an update that projects equally on every task gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_plugins.aggregation.base import GramianAggregator
from mtl_plugins.aggregation.solvers import Matrix, Vector, correlation


class IMTLG(GramianAggregator):
    r"""Impartial gradients (`Liu et al. 2021, eq. 4 <https://openreview.net/forum?id=IMPnRXEWpvr>`_).

    :math:`w \propto G^+ n` with :math:`n_t = \|g_t\|`, normalised to sum 1, so that
    :math:`d \cdot g_t / \|g_t\|` is the same for every task where the gradients are linearly
    independent. Where the weights sum to 0 or there is no gradient, they are those of the mean.
    """

    scale = "mean"

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        size = len(gramian)
        cosines, norms = correlation(gramian)
        c = torch.tensor(cosines, dtype=torch.float64)
        n = torch.tensor(norms, dtype=torch.float64)
        if n.min() > 0.0 and torch.linalg.eigvalsh(c)[0] > size * eps:
            # Solved on the cosines: in G itself the rounding of a long gradient hides a short one.
            w = torch.linalg.solve(c, torch.ones_like(n)) * (n.min() / n)
        else:
            g = torch.tensor(gramian, dtype=torch.float64)
            w = torch.linalg.pinv(g, rtol=size * eps, hermitian=True) @ n
        total, size_of = w.sum(), w.abs().sum()
        if total.abs() <= 1e-9 * size_of or not total.isfinite():
            return [1.0 / size] * size
        return (w / total).tolist()
