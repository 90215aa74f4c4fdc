"""IMTL-L: all weighted losses of one size."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from mtl_plugins.weighting.base import LearnedWeighting


class IMTLL(LearnedWeighting):
    r"""Impartial losses (`Liu et al. 2021, section 3.2 <https://openreview.net/forum?id=IMPnRXEWpvr>`_).

    The model minimises :math:`\sum_t e^{s_t} L_t - s_t` together with the :math:`s_t`, at first 0.
    Every weighted loss goes towards 1. A loss of exactly 0, as in a batch without an example,
    teaches nothing: its best weight is infinite. With the aggregator IMTL-G the method is IMTL.

    Args:
        lr: Learning rate of the :math:`s_t`.
        weight_decay: L2 penalty on the :math:`s_t`.
    """

    # Enough for losses from 2e-9 to 5e8, as in Uncertainty.
    bounds = (-20.0, 20.0)

    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        return {task: math.exp(self.number(task)) for task in tasks}

    def gradient(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Return :math:`e^{s_t} L_t - 1`."""
        return {t: math.exp(self.number(t)) * loss - 1.0 for t, loss in losses.items()}

    def update(self, losses: Mapping[str, float], norms: Mapping[str, float] | None = None) -> None:
        self.descend(self.gradient({t: loss for t, loss in losses.items() if loss != 0.0}))
