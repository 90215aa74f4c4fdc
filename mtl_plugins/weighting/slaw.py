"""SLAW: weights from how much each loss varies."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from mtl_plugins.weighting.base import Weighting


class SLAW(Weighting):
    r"""Scaled loss approximate weighting (Crawshaw and Košecká 2021, algorithm 1).

    Paper: `arXiv 2109.08218 <https://arxiv.org/abs/2109.08218>`_.

    With the running means :math:`a_t` of :math:`L_t^2` and :math:`b_t` of :math:`L_t`, this step's
    loss included, :math:`s_t = \sqrt{a_t - b_t^2}` stands for the length of the gradient, and
    :math:`w_t = T \, s_t^{-1} / \sum_k s_k^{-1}` over the tasks taking part. The means begin at the
    first loss of a task; a task whose loss has not varied yet has the mean weight of the others, 1
    if there are none.

    Args:
        beta: Share :math:`\beta` of the past in the running means.
    """

    needs_losses = True

    def __init__(self, beta: float = 0.99) -> None:
        super().__init__()
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"beta: expected a number in [0, 1), got {beta}")
        self.beta = beta
        # The mean and variance of each task: with a and b alone, a - b² would be rounding.
        self._moments: dict[str, tuple[float, float]] = {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"moments": dict(self._moments)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._moments = dict(state["moments"])

    def _with(self, task: str, loss: float) -> tuple[float, float]:
        """Return mean and variance of a task after one more loss."""
        mean, variance = self._moments.get(task, (loss, 0.0))
        off = loss - mean
        variance = self.beta * (variance + (1.0 - self.beta) * off * off)
        return mean + (1.0 - self.beta) * off, variance

    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        if losses is None:
            raise ValueError("SLAW needs the losses of the step")
        deviations = {t: math.sqrt(self._with(t, losses[t])[1]) for t in tasks}
        known = {t: s for t, s in deviations.items() if 0.0 < s < math.inf}
        # The unit is the least deviation: one over a deviation may leave the range of a float.
        least = min(known.values(), default=1.0)
        inverse = {t: least / s for t, s in known.items()}
        mean = sum(inverse.values()) / max(len(inverse), 1)
        return {t: inverse[t] / mean if t in inverse else 1.0 for t in tasks}

    def update(self, losses: Mapping[str, float], norms: Mapping[str, float] | None = None) -> None:
        for task, loss in losses.items():
            self._moments[task] = self._with(task, loss)
