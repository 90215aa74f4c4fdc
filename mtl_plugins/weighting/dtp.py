"""DTP: more weight for the tasks that do badly."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from mtl_plugins.weighting.indicators import IndicatorWeighting


class DTP(IndicatorWeighting):
    r"""Dynamic task priority (`Guo et al. 2018 <https://doi.org/10.1007/978-3-030-01270-0_17>`_).

    The weights are :math:`w_t = -(1 - k_t)^\gamma \log k_t` with a running mean :math:`k_t` of the
    task's key performance indicator in [0, 1], an accuracy of the validation. A metric in percent
    is divided by 100; an error :math:`e` counts as :math:`e^*_t / e`, with the error
    :math:`e^*_t` that is as good as perfect given by ``best``. The paper measures on every batch;
    here a value comes with each validation.

    The weights do not sum to T: with two tasks at 0.1 they are 2.1 each, near 1 they vanish.

    Args:
        gamma: Focus :math:`\gamma` on bad tasks.
        momentum: Share of each new indicator in the running mean; 0.1 in the code of Achievement's
            authors.
        floor: Least :math:`k_t`; at 0 the weight would be infinite.
        best: Error :math:`e^*_t` by task, for tasks whose indicator is an error.
        indicators: Name of the metric of each task; None, or a task not named, for the one that the
            run knows.
    """

    def __init__(
        self,
        gamma: float = 1.0,
        momentum: float = 0.1,
        floor: float = 0.01,
        best: Mapping[str, float] | None = None,
        indicators: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(momentum, indicators)
        if gamma < 0.0:
            raise ValueError(f"gamma: expected at least 0, got {gamma}")
        if not 0.0 < floor < 1.0:
            raise ValueError(f"floor: expected a number in (0, 1), got {floor}")
        if best is not None and not isinstance(best, Mapping):
            raise TypeError(f"best: expected a dict by task, got {best!r}")
        if best and min(best.values()) <= 0.0:
            raise ValueError(f"best: expected numbers above 0, got {dict(best)}")
        self.gamma, self.floor, self.best = gamma, floor, best

    def check(self, tasks: Collection[str]) -> None:
        super().check(tasks)
        self.check_names("best", self.best or {}, tasks)

    def reachable(self, task: str, error: bool, percent: bool) -> float:
        if not error:
            return 100.0 if percent else 1.0
        if task not in (self.best or {}):
            raise ValueError(
                f"weighting: DTP.best: the indicator of the task {task!r} is an error, and what is "
                f"1 - k of an error? Choose an accuracy, or say which error is as good as perfect: "
                f"best=dict({task}=...)"
            )
        assert self.best is not None
        return self.best[task]

    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        def weight(share: float) -> float:
            k = min(max(share, self.floor), 1.0)
            return max(-((1.0 - k) ** self.gamma) * math.log(k), 0.0)

        return self.of_shares(tasks, weight, untold=1.0)
