"""Base class of the weightings that go by how well the tasks do."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any

from mtl_plugins.registry import suggest
from mtl_plugins.weighting.base import Weighting

logger = logging.getLogger(__name__)


class IndicatorWeighting(Weighting):
    """A weighting by how far each task has come, as a share of what it can reach.

    The share of an accuracy is the accuracy divided by what can be reached; that of an error is the
    error that can be reached divided by the error. A running mean of the shares begins at the first
    one. A metric that is NaN or negative (COCO's -1: no ground truth) leaves its task as it was. A
    task without a share has the mean weight of the others; before the first validation all have the
    same.

    Args:
        momentum: Share of each new value in the running mean.
        indicators: Name of the metric of each task, for the run that validates; None, or a task not
            named, for the metric that the run knows to be the task's.
    """

    needs_indicators = True

    def __init__(self, momentum: float, indicators: Mapping[str, str] | None) -> None:
        super().__init__()
        if not 0.0 < momentum <= 1.0:
            raise ValueError(f"momentum: expected a number in (0, 1], got {momentum}")
        if indicators is not None and not isinstance(indicators, Mapping):
            raise TypeError(
                "indicators: expected the name of a metric by task, such as "
                f"dict(detection='coco/bbox_mAP'), got {indicators!r}"
            )
        self.momentum, self.indicators = momentum, indicators
        self._shares: dict[str, float] = {}
        self._told = False

    @abstractmethod
    def reachable(self, task: str, error: bool, percent: bool) -> float:
        """Return the value of its metric that a task can reach.

        Args:
            task: Name of the task.
            error: Whether the metric is the better the lower.
            percent: Whether the metric is in percent.

        Raises:
            ValueError: The options do not fit the metric.
        """

    def check(self, tasks: Collection[str]) -> None:
        self.check_names("indicators", self.indicators or {}, tasks)

    def check_names(self, key: str, given: Collection[str], tasks: Collection[str]) -> None:
        """Refuse a name that is no task.

        Raises:
            KeyError: A name under the option ``key`` is no task.
        """
        for name in given:
            if name not in tasks:
                raise KeyError(
                    f"weighting: {type(self).__name__}.{key}: no task is called {name!r}; "
                    + suggest(name, tasks)
                )

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"shares": dict(self._shares)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._shares = dict(state["shares"])

    def tell(
        self,
        indicators: Mapping[str, float],
        errors: Collection[str] = (),
        percent: Collection[str] = (),
    ) -> None:
        """Take the metrics of a validation into the running means.

        Raises:
            ValueError: A metric does not fit its unit or the options.
        """
        name = type(self).__name__
        for task, value in indicators.items():
            error = task in errors
            best = self.reachable(task, error, task in percent)
            if not math.isfinite(value) or value < 0.0:
                logger.warning(
                    "%s: the indicator of the task %r is %s: left out", name, task, value
                )
                continue
            top = 100.0 if task in percent else 1.0
            if not error and value > top * (1.0 + 1e-6):
                raise ValueError(
                    f"weighting: {name}.indicators: that of the task {task!r} is {value:g}, and "
                    f"expected is at most {top:g}; is it in percent, or an error?"
                )
            share = value / best if not error else best / max(value, 1e-300)
            share = min(share, 1e6)
            past = self._shares.get(task, share)
            self._shares[task] = past + self.momentum * (share - past)
        said = ", ".join(f"{task} {share:.4g}" for task, share in self._shares.items())
        logger.info("%s: running means of what can be reached: %s", name, said or "none yet")

    def of_shares(
        self, tasks: Collection[str], function: Callable[[float], float], untold: float
    ) -> dict[str, float]:
        """Return a function of each task's share; the mean of the others for a task without one.

        Args:
            tasks: Names of the tasks.
            function: Function of a share.
            untold: Value where no task has a share.
        """
        if not self._shares and not self._told:
            logger.info("%s: equal weights until the first validation", type(self).__name__)
        self._told = True
        found = {t: function(self._shares[t]) for t in tasks if t in self._shares}
        mean = sum(found.values()) / len(found) if found else untold
        return {task: found.get(task, mean) for task in tasks}
