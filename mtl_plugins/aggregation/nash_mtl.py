"""Nash-MTL: the tasks bargain about the update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mtl_plugins.aggregation.bargaining import nash_bargaining
from mtl_plugins.aggregation.base import GramianAggregator
from mtl_plugins.aggregation.solvers import (
    Matrix,
    Vector,
    correlation,
    dot,
    regularised,
)


class NashMTL(GramianAggregator):
    r"""Nash bargaining solution (`Navon et al. 2022, claim 3.1 <https://arxiv.org/abs/2202.01017>`_).

    The update is :math:`d = J^\top \alpha` with the unique :math:`\alpha > 0` that solves
    :math:`\alpha_t (G \alpha)_t = 1`. The update does not depend on the norms of the gradients, and
    has the norm :math:`\sqrt T` before clipping: of all methods here, a learning rate carries over
    least to this one. A zero row gets the weight 0.

    Where some convex combination of the gradients vanishes (a Pareto stationary point) there is no
    solution: the weights of the tasks in it grow without bound. The bargain is therefore made with
    :math:`C + \rho I` instead of the cosines :math:`C`, where :math:`\rho` is the rounding in
    them, at least 1e-10. The tasks of the combination then have large weights, at most
    :math:`\sqrt{T / \rho}` for unit gradients, under which their gradients cancel, and the other
    tasks bargain in the space that is left.

    Args:
        max_norm: Norm to which a longer ``d`` is scaled down, whatever the weights come from; 0
            turns that off. With ``heads="weighted"`` the heads have the weights before that,
            as in the authors' code.
        update_every: Number of steps for which the weights are kept.
    """

    scale = "mean"

    def __init__(self, max_norm: float = 1.0, update_every: int = 1) -> None:
        if max_norm < 0.0:
            raise ValueError(f"max_norm is not negative, got {max_norm}")
        if update_every < 1:
            raise ValueError(f"update_every is at least 1, got {update_every}")
        self.max_norm = max_norm
        self.update_every = update_every
        self._age = 0
        self._alpha: dict[int, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"age": self._age, "alpha": dict(self._alpha)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._age, self._alpha = state["age"], dict(state["alpha"])

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        self.own_factors = None  # should the solver not converge
        if self._age % self.update_every == 0 or self._alpha.keys() != set(tasks):
            self._alpha = dict(zip(tasks, self._bargain(gramian, eps), strict=True))
            self._age = 0
        self._age += 1
        alpha = [self._alpha[t] for t in tasks]
        self.own_factors = alpha  # before the clipping
        return self._clipped(gramian, alpha)

    def fallback(self, gramian: Matrix) -> Vector:
        return self._clipped(gramian, super().fallback(gramian))

    def _clipped(self, gramian: Matrix, alpha: Vector) -> Vector:
        norm = math.sqrt(max(dot([dot(row, alpha) for row in gramian], alpha), 0.0))
        if norm > self.max_norm > 0.0:
            alpha = [a * self.max_norm / norm for a in alpha]
        return alpha

    def _bargain(self, gramian: Matrix, eps: float) -> Vector:
        cosines, norms = correlation(gramian)
        active = [i for i, n in enumerate(norms) if n > 0.0]
        if len(active) < len(norms):
            cosines = [[cosines[i][j] for j in active] for i in active]
        # With less on the diagonal, 16 digits do not hold both the weights and what cancels.
        beta = nash_bargaining(regularised(cosines, eps, least=1e-10))
        alpha = [0.0] * len(norms)
        for i, b in zip(active, beta, strict=True):
            alpha[i] = b / norms[i]
        return alpha
