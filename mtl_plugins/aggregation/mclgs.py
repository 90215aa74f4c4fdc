"""MCLGS: tasks that agree first, the plain mean in the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from mtl_plugins.aggregation.base import GramianAggregator
from mtl_plugins.aggregation.constant import Mean
from mtl_plugins.aggregation.solvers import Matrix, Vector, correlation

Pacing = Literal["linear", "exponential"]


class MCLGS(GramianAggregator):
    r"""Multi-task curriculum learning by gradient similarity (paper A, eq. 3 to 8 and 10).

    .. math:: d = \frac{1}{T (T - 1)} \sum_{i<j} w_{ij} (g_i + g_j) = \sum_i \alpha_i g_i, \qquad
              w_{ij} = \tanh(\cos(g_i, g_j) \, p(t)) + 1

    with the pacing :math:`p(t) = \max(a_0 (1 - t / (r_t t_{total})), 0)` or
    :math:`p(t) = a_0 r_a^t` at step :math:`t = 0, 1, \dots`. The gradient of what a task has alone
    is scaled by the same :math:`\alpha_i`. Where the pacing has come to 0, the update is the mean.

    Another method as ``base`` (A: CAGrad + MCLGS) gets the gradients :math:`T \alpha_i g_i`, and
    the gradient of what a task has alone is scaled by :math:`T \alpha_i`.

    Args:
        a0: Pacing at first. 0 is the base alone.
        pacing: Shape of the pacing, ``"linear"`` or ``"exponential"``.
        r_t: Share of the run at whose end the linear pacing reaches 0; above 1 it does not. The
            length of the run comes from the run.
        r_a: Factor a step of the exponential pacing.
        base: Name, ``dict(type=name, ...)`` or a :class:`GramianAggregator`.
        total_steps: Length of the run, where nothing sets :attr:`total_steps`.
    """

    scale = "mean"
    scales_own = True

    def __init__(
        self,
        a0: float = 120.0,
        pacing: Pacing = "linear",
        r_t: float = 2.0,
        r_a: float = 0.999,
        base: str | Mapping[str, Any] | GramianAggregator = "Mean",
        total_steps: int | None = None,
    ) -> None:
        from mtl_plugins.aggregation import build_aggregator  # imports this class

        if pacing not in get_args(Pacing):
            raise ValueError(f"pacing: expected one of {get_args(Pacing)}, got {pacing!r}")
        if a0 < 0.0 or r_t <= 0.0 or not 0.0 < r_a <= 1.0:
            raise ValueError(f"a0 >= 0, r_t > 0 and 0 < r_a <= 1, got {a0}, {r_t} and {r_a}")
        self.a0, self.pacing, self.r_t, self.r_a = a0, pacing, r_t, r_a
        self.total_steps = total_steps
        built = build_aggregator(base)
        if not isinstance(built, GramianAggregator):
            raise ValueError(
                f"base: expected a method that weighs the gradients, and {type(built).__name__} "
                "combines them in another way"
            )
        self.base = built
        self.scale = built.scale  # type: ignore[misc, assignment]
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"step": self._step, "base": self.base.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._step = state["step"]
        self.base.load_state_dict(state["base"])

    def pace(self, step: int) -> float:
        """Return the pacing ``p(t)``.

        Raises:
            ValueError: The linear pacing needs the length of the run, and nothing sets it.
        """
        if self.pacing == "exponential":
            return self.a0 * self.r_a**step
        if self.total_steps is None:
            raise ValueError(
                "aggregator: MCLGS with pacing='linear' needs to know how many steps the run "
                "takes: MultiTaskBackward.total_steps, or total_steps of MCLGS, is not set"
            )
        return max(self.a0 - step * self.a0 / (self.r_t * self.total_steps), 0.0)

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        count = len(gramian)
        p = self.pace(self._step)
        self._step += 1
        cosines, _ = correlation(gramian)
        # T α_i: 1 on average where no pair agrees or conflicts.
        rows = [
            sum(math.tanh(cosines[i][j] * p) + 1.0 for j in range(count) if j != i)
            / max(count - 1, 1)
            for i in range(count)
        ]
        if count == 1:
            rows = [1.0]
        own = 1.0 / count if isinstance(self.base, Mean) else 1.0
        self.own_factors = [own] * count  # should the base not converge
        scaled = [
            [g * a * b for g, b in zip(row, rows, strict=True)]
            for row, a in zip(gramian, rows, strict=True)
        ]
        weights = self.base.solve(scaled, eps=eps, losses=losses, tasks=tasks)
        self.own_factors = [r * own for r in rows]
        return [w * r for w, r in zip(weights, rows, strict=True)]

    def fallback(self, gramian: Matrix) -> Vector:
        return self.base.fallback(gramian)
