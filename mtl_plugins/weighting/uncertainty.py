"""Uncertainty: weights from the noise that each task is found to have."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from mtl_plugins.weighting.base import LearnedWeighting


class Uncertainty(LearnedWeighting):
    r"""Homoscedastic uncertainty (`Kendall et al. 2018, eq. 7 <https://arxiv.org/abs/1705.07115>`_).

    The model minimises :math:`\sum_t \frac12 e^{-s_t} L_t + \frac12 s_t` together with the log
    variances :math:`s_t`. A task's weight goes towards :math:`\frac{1}{2 L_t}`. A loss
    of exactly 0, as in a batch without an example, teaches nothing: its best weight is infinite.

    Args:
        lr: Learning rate of the log variances.
        weight_decay: L2 penalty on the log variances.
        initial: Log variances at first; -0.5 in the code of LibMTL and of CAGrad's authors.
    """

    # Enough for losses from 2e-9 to 5e8. Without bounds, weights would overflow, and a stretch of
    # tiny losses would take as long to make up for as it lasted.
    bounds = (-20.0, 20.0)

    def __init__(self, lr: float = 0.025, weight_decay: float = 0.0, initial: float = 0.0) -> None:
        super().__init__(lr, weight_decay)
        low, high = self.bounds
        if not low <= initial <= high:
            raise ValueError(f"initial: expected a number in [{low:g}, {high:g}], got {initial}")
        self.initial = initial

    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        return {task: 0.5 * math.exp(-self.number(task)) for task in tasks}

    def gradient(self, losses: Mapping[str, float]) -> dict[str, float]:
        r"""Return :math:`\frac12 (1 - e^{-s_t} L_t)`."""
        return {t: 0.5 * (1.0 - math.exp(-self.number(t)) * loss) for t, loss in losses.items()}

    def update(self, losses: Mapping[str, float], norms: Mapping[str, float] | None = None) -> None:
        self.descend(self.gradient({t: loss for t, loss in losses.items() if loss != 0.0}))
