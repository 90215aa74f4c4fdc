"""DWA: weights by how fast the losses fell lately."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from mtl_plugins.weighting.base import Weighting, softmax


class DWA(Weighting):
    r"""Dynamic weight average (`Liu et al. 2019, eq. 7 <https://arxiv.org/abs/1803.10704>`_).

    The weights are :math:`w = T \operatorname{softmax}(r / \tau)` over the tasks taking part, with
    :math:`r_t = L_t(e - 1) / L_t(e - 2)` of the mean losses in the last two windows. The ratio is 1
    during the first two windows, and for a task that was absent from one of them.

    Args:
        temperature: Temperature :math:`\tau`; the higher, the more equal the weights.
        window: Number of steps in a window; None for an epoch, or for a hundredth of a run that
            counts iterations.
    """

    def __init__(self, temperature: float = 2.0, window: int | None = None) -> None:
        super().__init__()
        if temperature <= 0.0:
            raise ValueError(f"temperature: expected more than 0, got {temperature}")
        if window is not None and window < 1:
            raise ValueError(f"window: expected at least 1, got {window}")
        self.temperature = temperature
        self.window = window
        self._steps = 0  # in the current window
        self._sums: dict[str, tuple[float, int]] = {}  # sum and number of its losses
        self._last: dict[str, float] = {}
        self._before: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "steps": self._steps,
            "sums": dict(self._sums),
            "last": dict(self._last),
            "before": dict(self._before),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._steps, self._sums = state["steps"], dict(state["sums"])
        self._last, self._before = dict(state["last"]), dict(state["before"])

    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        self._size()  # raise an error at the first step
        shares = softmax({task: self._ratio(task) / self.temperature for task in tasks})
        return {task: len(shares) * share for task, share in shares.items()}

    def update(self, losses: Mapping[str, float], norms: Mapping[str, float] | None = None) -> None:
        for task, loss in losses.items():
            total, count = self._sums.get(task, (0.0, 0))
            self._sums[task] = (total + loss, count + 1)
        self._steps += 1
        if self._steps >= self._size():
            means = {task: total / count for task, (total, count) in self._sums.items()}
            self._last, self._before = means, self._last
            self._steps, self._sums = 0, {}

    def _size(self) -> int:
        size = self.window or self.steps_per_epoch
        if size is None and self.total_steps is not None:
            size = max(1, self.total_steps // 100)
        if size is None:
            raise ValueError(
                "weighting: DWA.window: how many steps make a window? By default it is an epoch "
                "or a hundredth of the run, and neither is known here"
            )
        return size

    def _ratio(self, task: str) -> float:
        before = self._before.get(task, 0.0)
        ratio = self._last.get(task, before) / before if before else 1.0
        return ratio if math.isfinite(ratio) else 1.0
