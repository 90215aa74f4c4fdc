"""MoDo: weights that follow MGDA's slowly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mtl_plugins.aggregation.base import GramianAggregator
from mtl_plugins.aggregation.memory import Shares
from mtl_plugins.aggregation.solvers import Matrix, Vector, dot, on_simplex


class MoDo(GramianAggregator):
    r"""Multi-objective gradient (`Chen et al. 2023, algorithm 1 <https://arxiv.org/abs/2305.20057>`_).

    In each step, from :math:`\lambda = 1 / T`,

    .. math:: \lambda \leftarrow \Pi_\Delta(\lambda - \gamma (G \lambda + \rho \lambda)), \qquad
              d = J^\top \lambda

    with the projection :math:`\Pi_\Delta` onto the simplex. The paper takes the two factors of
    :math:`G` and the :math:`J` of the update from independent batches (double sampling). A step has
    one batch, of which all three are here: :math:`\lambda` then also shrinks by the noise of each
    task's gradient. The shares are part of the checkpoint.

    Args:
        gamma: Step size :math:`\gamma`, in units of one over a squared gradient.
        rho: Regularisation :math:`\rho` towards equal shares.
    """

    scale = "mean"

    def __init__(self, gamma: float = 1e-3, rho: float = 0.1) -> None:
        if gamma <= 0.0:
            raise ValueError(f"gamma is positive, got {gamma}")
        if rho < 0.0:
            raise ValueError(f"rho is not negative, got {rho}")
        self.gamma = gamma
        self.rho = rho
        self._shares = Shares()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"shares": self._shares.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._shares.load_state_dict(state["shares"])

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        shares = self._shares.of(tasks)
        moved = [
            s - self.gamma * (dot(row, shares) + self.rho * s)
            for s, row in zip(shares, gramian, strict=True)
        ]
        shares = on_simplex(moved)
        self._shares.keep(tasks, shares)
        return shares
