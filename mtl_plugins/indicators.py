"""Indicators: metric of the validation that says how well a task does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from mtl_plugins import MultiTaskBackward
from mtl_plugins.compare.columns import in_percent, known_column
from mtl_plugins.registry import suggest
from mtl_plugins.tasks import TaskGroups
from mtl_plugins.weighting import Weighting
from mtl_plugins.weighting.indicators import IndicatorWeighting

logger = logging.getLogger(__name__)

UNITS = ("fraction", "percent", "error")


class Indicator(NamedTuple):
    """Metric of a task.

    Attributes:
        name: Name in the results of the validation.
        unit: Unit, of :data:`UNITS`.
    """

    name: str
    unit: str


class Indicators:
    """Metrics that a weighting goes by, one a task.

    ``weighting.indicators`` names them: ``"coco/bbox_mAP"``, or with a unit where the metric is
    not one of the frameworks, ``"grasp/score:percent"``. A task that is not named there has the one
    accuracy that is known to be its own among those that the validation gives.

    Args:
        weighting: Weighting that needs indicators.
        groups: Losses of each task.
        offered: Names of metrics that the validation is known to give.
        gives: Function that tells whether the validation may give a metric of a name.

    Raises:
        KeyError: A task has no metric, or one of unknown unit.
        ValueError: The tasks have no names, or a metric does not fit the weighting.
    """

    def __init__(
        self,
        weighting: Weighting,
        groups: TaskGroups,
        offered: Iterable[str],
        gives: Callable[[str], bool] = lambda name: True,
    ) -> None:
        assert isinstance(weighting, IndicatorWeighting)
        self._method = type(weighting).__name__
        if not groups.names:
            raise ValueError(
                f"tasks: {self._method} goes by a metric of each task, and needs tasks with names"
            )
        self._groups, offered = groups, sorted(set(offered))
        given = weighting.indicators or {}
        self.by_task = {
            task: self._parse(task, given[task]) if task in given else self._default(task, offered)
            for task in groups.names
        }
        for task, (name, unit) in self.by_task.items():
            if not gives(name):
                raise KeyError(
                    f"weighting: {self._method}.indicators: the validation gives the task {task!r} "
                    f"no {name!r}; {suggest(name, offered)}"
                )
            weighting.reachable(task, unit == "error", unit == "percent")

    def _parse(self, task: str, text: str) -> Indicator:
        name, _, unit = text.rpartition(":")
        if name and unit in UNITS:
            return Indicator(name, unit)
        column = self._known(text)
        if column is None:
            raise KeyError(
                f"weighting: {self._method}.indicators: of {text!r}, the metric of the task "
                f"{task!r}, nobody has said the unit: {text}:fraction, {text}:percent, or "
                f"{text}:error where less is better"
            )
        return column[1]

    def _default(self, task: str, offered: Iterable[str]) -> Indicator:
        known = [pair for name in offered if (pair := self._known(name))]
        own = [metric for of, metric in known if of == task and metric.unit != "error"]
        if len(own) != 1:
            found = ", ".join(name for name, _ in own) or "none"
            raise KeyError(
                f"weighting: {self._method}.indicators: the metric of the task {task!r} has to be "
                f"named, indicators=dict({task}='NAME'): its accuracies among the known metrics of "
                f"the validation are: {found}. Known are: {', '.join(offered) or 'none'}"
            )
        return own[0]

    def _known(self, name: str) -> tuple[str, Indicator] | None:
        column = known_column(name, self._groups)
        if column is None:
            return None
        unit = "error" if column.lower else "percent" if in_percent(name) else "fraction"
        return column.task, Indicator(name, unit)

    def __str__(self) -> str:
        return ", ".join(f"{task}: {name} ({unit})" for task, (name, unit) in self.by_task.items())

    def tell(self, multitask: MultiTaskBackward, metrics: Mapping[str, float]) -> None:
        """Tell the weighting the results of a validation; the same calls on every rank.

        A detector that finds nothing yet has no metric: its task stays as it was.

        Args:
            multitask: Object with the weighting.
            metrics: Results by name.

        Raises:
            KeyError: The validation gives other metrics of that prefix, but not the task's.
            ValueError: A metric does not fit its unit.
        """
        for task, (name, _) in self.by_task.items():
            prefix = name.rpartition("/")[0]
            others = [other for other in metrics if other.rpartition("/")[0] == prefix]
            if name not in metrics and others:
                raise KeyError(
                    f"weighting: {self._method}.indicators: the validation gave the task {task!r} "
                    f"no {name!r}; {suggest(name, others)}"
                )
            if name not in metrics:
                logger.warning(
                    "the validation gave no %r: the weight of the task %r does not learn from it",
                    name,
                    task,
                )
        multitask.tell(
            {
                task: float(metrics.get(name, float("nan")))
                for task, (name, _) in self.by_task.items()
            },
            errors=[task for task, (_, unit) in self.by_task.items() if unit == "error"],
            percent=[task for task, (_, unit) in self.by_task.items() if unit == "percent"],
        )
