"""IMTL-G: an update that projects equally on every task gradient."""

from __future__ import annotations

import math
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
        shortest = min(norms)
        values, vectors = torch.linalg.eigh(torch.tensor(cosines, dtype=torch.float64))
        if shortest > 0.0 and values[0].item() > size * eps:
            # Solved on the cosines: in G itself the rounding of a long gradient hides a short one.
            u = (vectors @ (vectors.sum(dim=0) / values)).tolist()
            w = [u_t * (shortest / n) for u_t, n in zip(u, norms, strict=True)]
        else:
            g = torch.tensor(gramian, dtype=torch.float64)
            n = torch.tensor(norms, dtype=torch.float64)
            w = (torch.linalg.pinv(g, rtol=size * eps, hermitian=True) @ n).tolist()
        total, size_of = sum(w), sum(map(abs, w))
        if abs(total) <= 1e-9 * size_of or not math.isfinite(total):
            return [1.0 / size] * size
        return [w_t / total for w_t in w]
