"""FairGrad: the update as a resource that is shared out fairly."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from mtl_plugins.aggregation.bargaining import fair_allocation, nash_bargaining
from mtl_plugins.aggregation.base import GramianAggregator
from mtl_plugins.aggregation.solvers import (
    Matrix,
    Vector,
    correlation,
    dot,
    regularised,
)


class FairGrad(GramianAggregator):
    r"""Alpha-fair resource allocation (`Ban and Ji 2024, eq. 4 <https://arxiv.org/abs/2402.15638>`_).

    The update is :math:`d = J^\top w` with the unique :math:`w > 0` that solves
    :math:`(G w)_t = w_t^{-1/\alpha}`, a convex problem that is solved to 1e-9 for unit gradients.
    With :math:`\alpha = 1` the equation is Nash-MTL's; a large :math:`\alpha` serves the worst
    task, a small one the sum. The length of the update goes with the power
    :math:`(1 - \alpha) / (1 + \alpha)` of the length of the gradients, before it is clipped. A
    zero row gets the weight 0.

    As in :class:`NashMTL`, rounding on the diagonal of the cosines bounds the weights where some
    convex combination of the gradients vanishes. The authors' code multiplies by :math:`T` before
    it clips to 1, and trains with :math:`\alpha = 2`.

    Args:
        alpha: Fairness :math:`\alpha`, more than 0.
        max_norm: Norm to which a longer ``d`` is scaled down; 0 turns that off.
    """

    scale = "mean"

    def __init__(self, alpha: float = 2.0, max_norm: float = 1.0) -> None:
        if not 0.0 < alpha < math.inf:
            raise ValueError(f"alpha is positive and finite, got {alpha}")
        if max_norm < 0.0:
            raise ValueError(f"max_norm is not negative, got {max_norm}")
        self.alpha = alpha
        self.max_norm = max_norm

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        cosines, norms = correlation(gramian)
        active = [t for t, n in enumerate(norms) if n > 0.0]
        a = regularised([[cosines[s][t] for t in active] for s in active], eps, least=1e-10)
        power = 1.0 / self.alpha
        # In units of the longest gradient s, w is s^(-2 / (1 + p)) times as large.
        longest = max(norms)
        relative = [norms[t] / longest for t in active]
        if power == 1.0:
            x = nash_bargaining(a)
        else:
            x = fair_allocation(a, [n ** (power - 1.0) for n in relative], power)
        weights = [0.0] * len(norms)
        for t, x_t, n in zip(active, x, relative, strict=True):
            weights[t] = x_t / n * longest ** (-2.0 / (1.0 + power))
        return self._clipped(weights, norms, cosines)

    def fallback(self, gramian: Matrix) -> Vector:
        cosines, norms = correlation(gramian)
        return self._clipped(super().fallback(gramian), norms, cosines)

    def _clipped(self, weights: Vector, norms: Vector, cosines: Matrix) -> Vector:
        unit = [w * n for w, n in zip(weights, norms, strict=True)]
        norm = math.sqrt(max(dot(unit, [dot(row, unit) for row in cosines]), 0.0))
        if norm > self.max_norm > 0.0:
            weights = [w * self.max_norm / norm for w in weights]
        return weights
