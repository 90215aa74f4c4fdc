"""The aggregator, and the weights that it found last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from mtl_plugins.aggregation import Aggregator, GramianAggregator
from mtl_plugins.descent import Descent
from mtl_plugins.options import Heads, Scale
from mtl_plugins.step import Choice, Measured
from mtl_plugins.window import Window


class Chooser:
    """Asks the aggregator what becomes of the gradients, at every ``every``-th step.

    Args:
        aggregator: The method.
        tasks: Names of all tasks; the list grows.
        every: Number of steps for which weights hold.
        heads, scale: See :class:`~mtl_plugins.options.Options`.

    Attributes:
        steps_left: Number of steps for which the weights found last still hold.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        tasks: Sequence[str],
        every: int = 1,
        heads: Heads = "own",
        scale: Scale = "own",
    ) -> None:
        self.aggregator = aggregator
        self.steps_left = 0
        self._tasks = tasks
        self._every = every
        self._heads = heads
        self._scale = scale
        self._weights: dict[str, float] = {}
        self._own: dict[str, float] = {}

    def choose(
        self,
        measured: Measured,
        window: Window,
        keep: bool = True,
        descent: Descent | None = None,
    ) -> Choice:
        """Decide by what was measured.

        Args:
            measured: Gradients of the tasks; without a Gramian the weights found last are taken
                again, or weights that no gradient decides.
            window: The step.
            keep: Whether this is the last choice of the step, whose weights hold for later steps.
            descent: Descent of the losses that were measured, for a method that looks ahead.
        """
        losses = window.totals(measured.reports)
        if measured.gramian is None and self.aggregator.needs_gradients:
            return self._again(keep)
        if measured.gramian is None:
            # Whatever the gradients, all tasks have one weight: the plain sum, or the mean.
            weights = self._weigh(torch.zeros(len(losses), len(losses)), list(losses))
            return Choice(weights)
        if window.note_nonfinite(measured.gramian, measured.reports):
            return Choice(dict.fromkeys(losses, 1.0))
        if not measured.shared:
            return Choice(dict.fromkeys(losses, 1.0))
        if not isinstance(self.aggregator, GramianAggregator):
            return self._combine(measured, losses, window)
        # A task without a gradient, for want of examples in this batch, has no say.
        active = [i for i in range(len(losses)) if measured.gramian[i, i] > 0.0]
        names = [name for i, name in enumerate(losses) if i in active]
        if not names:
            return Choice(dict.fromkeys(losses, 0.0))
        seen = torch.tensor([losses[name] * window.factors[name] for name in names])
        if descent is not None:
            numbers = [self._tasks.index(name) for name in names]
            self.aggregator.look_ahead(numbers, partial(descent.losses_after, names))
        found = self._weigh(measured.gramian[active][:, active], names, seen)
        by = self._factor(len(names))
        found = {name: weight * by for name, weight in found.items()}
        own = self._own_factors(names)
        if self._heads == "weighted":
            own = {name: factor * by for name, factor in own.items()} or found
        if keep and self._every > 1:
            self._weights, self._own, self.steps_left = found, own, self._every - 1
        return Choice(
            dict.fromkeys(losses, 0.0) | found, own=_with_the_mean_of_others(self._tasks, own)
        )

    def _weigh(
        self, gramian: torch.Tensor, names: Sequence[str], losses: torch.Tensor | None = None
    ) -> dict[str, float]:
        assert isinstance(self.aggregator, GramianAggregator)
        numbers = [self._tasks.index(name) for name in names]
        weights = self.aggregator.weights(gramian, losses=losses, tasks=numbers) if names else None
        return {} if weights is None else dict(zip(names, weights.tolist(), strict=True))

    def _combine(self, measured: Measured, losses: Mapping[str, float], window: Window) -> Choice:
        gramian = measured.gramian
        assert measured.rows is not None and gramian is not None
        rows = measured.rows.matrix()
        names = list(losses)
        if not self.aggregator.of_features:
            # A task without a gradient has no say, in the memory either.
            names = [name for i, name in enumerate(names) if gramian[i, i] > 0.0]
        if not names:
            return Choice(None, rows.new_zeros(rows.shape[1]))
        present = [self._tasks.index(name) for name in names]
        # An index would be copied to the device, and the host would wait.
        rows = rows if len(present) == len(rows) else torch.stack([rows[t] for t in present])
        if measured.features:
            update = self.aggregator.on_features(rows, measured.features, present)
            return Choice(None, update * self._factor(len(names)))
        # The loss scale of the step must not be in the memory.
        scale = measured.scale if self.aggregator.remembers_rows else None
        seen = torch.tensor([losses[name] * window.factors[name] for name in names])
        rows = rows if scale is None else rows / scale
        update = self.aggregator.on_parameters(rows, measured.parameters, present, seen)
        by = self._factor(len(names))
        if scale is not None:
            update = (update * scale).to(update)
        return Choice(
            None,
            update if by == 1.0 else update * by,
            _with_the_mean_of_others(self._tasks, self._own_factors(names)),
        )

    def _factor(self, tasks: int) -> float:
        """Return the factor that brings the update of some tasks to the scale that is asked for."""
        if self._scale in ("own", self.aggregator.scale):
            return 1.0
        return float(tasks) if self._scale == "sum" else 1.0 / tasks

    def _own_factors(self, names: Sequence[str]) -> dict[str, float]:
        """Return the factors that the method has for what each task has alone; empty for none."""
        factors = self.aggregator.own_factors
        asked = self.aggregator.scales_own or self._heads == "weighted"
        return dict(zip(names, factors, strict=True)) if asked and factors is not None else {}

    def _again(self, last: bool) -> Choice:
        self.steps_left -= last
        return Choice(
            _with_the_mean_of_others(self._tasks, self._weights),
            own=_with_the_mean_of_others(self._tasks, self._own),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the method, and the weights that still hold."""
        return {
            "weights": dict(self._weights),
            "own": dict(self._own),
            "steps_left": self.steps_left,
            "aggregator": {
                "type": type(self.aggregator).__name__,
                "state": self.aggregator.state_dict(),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._weights, self._own = dict(state["weights"]), dict(state["own"])
        self.steps_left = state["steps_left"]
        self.aggregator.load_state_dict(state["aggregator"]["state"])


def _with_the_mean_of_others(tasks: Iterable[str], found: Mapping[str, float]) -> dict[str, float]:
    """Give the tasks without a value the mean of the others."""
    if not found:
        return {}
    mean = sum(found.values()) / len(found)
    return {name: found.get(name, mean) for name in tasks}
