"""Records of measures that the method does not need: when to take them, and what to log."""

from __future__ import annotations

from collections.abc import Sequence

from mtl_plugins.backward import MultiTaskBackward
from mtl_plugins.monitors import GRADIENT_MEASURES, check_measures, scalars_of
from mtl_plugins.step import Step


class Recorder:
    """Asks for measures before the steps that are due, and reads them after.

    A framework's hook calls :meth:`before_step` and :meth:`after_step` around every iteration. An
    iteration that ends without a step, in the middle of an accumulation, leaves its record to the
    next iteration.

    Args:
        interval: Number of iterations between two records.
        measures: Names among :data:`~mtl_plugins.monitors.MEASURES`.
        interval_key: Config key of the interval, for the error message.
        measures_key: Config key of the measures, for the error message.

    Raises:
        TypeError, ValueError: The interval or the measures are not valid.
    """

    def __init__(
        self, interval: int, measures: Sequence[str], interval_key: str, measures_key: str
    ) -> None:
        if not isinstance(interval, int) or interval < 1:
            raise ValueError(f"{interval_key}: expected an integer of at least 1, got {interval!r}")
        check_measures(measures, measures_key)
        self.interval = interval
        self.measures = tuple(measures)
        self._due = False
        self._last: Step | None = None
        self._seen: set[str] = set()  # tasks, since the last look for absent ones
        self._reported: set[str] = set()  # tasks that were reported absent

    def before_step(self, multitask: MultiTaskBackward, iteration: int) -> None:
        """Ask ``multitask`` for the measures, if a record is due.

        Args:
            multitask: Backward that takes the next step.
            iteration: Number of the iteration, from 1.
        """
        self._due = self._due or iteration % self.interval == 0
        if self._due:
            multitask.monitor = bool(set(GRADIENT_MEASURES) & set(self.measures))
            multitask.monitor_features = "fd" in self.measures

    def after_step(self, multitask: MultiTaskBackward) -> dict[str, float]:
        """Return the scalars to be logged, by name; none if no record is due."""
        step = multitask.last
        if step is None or step is self._last:
            return {}
        self._last = step
        lengths = [1.0] * len(step.tasks) if step.gramian is None else step.gramian.diagonal()
        self._seen |= {t for t, n in zip(step.tasks, lengths, strict=True) if n != 0.0}
        if not self._due:
            return {}
        self._due = False
        return scalars_of(step, self.measures, getattr(multitask.aggregator, "fallbacks", 0))

    def absent(self, multitask: MultiTaskBackward, period: str) -> list[str]:
        """Return a warning for each task that took part in no step since the last call.

        A task is reported once.

        Args:
            multitask: Backward that has the tasks.
            period: Time since the last call in words, such as "a whole epoch".
        """
        missing = set(multitask.tasks) - self._seen - self._reported
        self._reported |= missing
        self._seen = set()
        return [
            f"the task {task!r} had no loss or no gradient for {period}: does the data have "
            "examples of it?"
            for task in sorted(missing)
        ]
