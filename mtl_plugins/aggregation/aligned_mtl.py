"""Aligned-MTL: make the principal components of the task gradients orthogonal and equally long."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from statistics import fmean, median_low
from typing import Literal, get_args

import torch
from torch import Tensor

from mtl_plugins.aggregation.base import GramianAggregator
from mtl_plugins.aggregation.solvers import Matrix, Vector, dot

ScaleMode = Literal["min", "median", "rmse"]
SIGMA: dict[ScaleMode, Callable[[Vector], float]] = {
    "min": min,
    "median": median_low,
    "rmse": fmean,
}


class AlignedMTL(GramianAggregator):
    r"""Independent component alignment (Senushkin et al. 2023, eq. 12 and algorithm 1).

    Paper: `arXiv 2305.19000 <https://arxiv.org/abs/2305.19000>`_.

    With the eigen-decomposition :math:`G = V \Lambda V^\top`, eigenvalues below rounding dropped,

    .. math:: w = \sigma V \Lambda^{-1/2} V^\top p

    Args:
        scale_mode: Eigenvalue taken for :math:`\sigma^2`: the smallest (``"min"``), the median
            (``"median"``) or the mean (``"rmse"``, as in the authors' code).
        preference: Numbers ``p``, one a task; None is all ones, which sums the aligned gradients.
    """

    scale = "sum"

    def __init__(
        self, scale_mode: ScaleMode = "min", preference: Sequence[float] | None = None
    ) -> None:
        if scale_mode not in get_args(ScaleMode):
            raise ValueError(f"scale_mode is one of {get_args(ScaleMode)}, got {scale_mode!r}")
        self.scale_mode = scale_mode
        self.preference = preference

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        values, vectors = torch.linalg.eigh(torch.tensor(gramian, dtype=torch.float64))
        eigenvalues, columns = values.tolist(), vectors.T.tolist()
        preference = self._preference(tasks)
        first = bisect_right(eigenvalues, eigenvalues[-1] * len(gramian) * eps)
        kept = eigenvalues[first:]
        if not kept:  # all gradients are zero
            return preference
        sigma = SIGMA[self.scale_mode](kept)
        aligned = [0.0] * len(gramian)
        for value, column in zip(kept, columns[first:], strict=True):
            along = math.sqrt(sigma / value) * dot(column, preference)
            aligned = [a + along * c for a, c in zip(aligned, column, strict=True)]
        return aligned

    def _preference(self, tasks: Sequence[int]) -> Vector:
        if self.preference is None:
            return [1.0] * len(tasks)
        if max(tasks) >= len(self.preference):
            raise ValueError(
                f"preference has {len(self.preference)} numbers for {max(tasks) + 1} tasks"
            )
        return [float(self.preference[t]) for t in tasks]
