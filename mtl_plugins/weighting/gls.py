"""GLS: the geometric mean of the losses."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from mtl_plugins.weighting.base import Weighting


class GLS(Weighting):
    r"""Geometric loss strategy (`Chennupati et al. 2019, eq. 3 <https://arxiv.org/abs/1904.08492>`_).

    The model descends :math:`\bigl( \prod_t L_t \bigr)^{1/T}` over the tasks taking part, whose
    gradient has the factors :math:`w_t = \bigl( \prod_k L_k \bigr)^{1/T} / (T L_t)`. It does not
    depend on the units of the losses, up to one factor for all of them.

    A loss of exactly 0, that of a batch without an example, has no gradient and takes no part: the
    product of the others would vanish with it.
    """

    needs_losses = True

    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        if losses is None:
            raise ValueError("GLS needs the losses of the step")
        for task in tasks:
            if losses[task] < 0.0:
                raise ValueError(
                    f"weighting: GLS: the loss of the task {task!r} is {losses[task]:g}, and a "
                    "geometric mean takes no loss below 0"
                )
        # The owner of the step deals with a loss that is not finite.
        usable = [t for t in tasks if losses[t] > 0.0 and math.isfinite(losses[t])]
        logs = {t: math.log(losses[t]) for t in usable}
        mean = sum(logs.values()) / max(len(logs), 1)
        # Single precision is all that a step needs: a weight beyond it would not be finite there.
        factors = {t: math.exp(min(mean - log, 80.0)) / len(logs) for t, log in logs.items()}
        return {task: factors.get(task, 0.0) for task in tasks}
