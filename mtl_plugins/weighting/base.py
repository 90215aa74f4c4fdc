"""Base classes of the loss weightings."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, TypeVar

from mtl_plugins.adam import Moments, adam_step
from mtl_plugins.registry import Method, suggest

Task = TypeVar("Task", str, int)
"""Name or number of a task."""


class Weighting(Method, ABC):
    """Weights the losses of the tasks before any gradient is taken.

    Everything here is about a few plain numbers on the CPU. A step asks for :meth:`weights` before
    its backward pass and tells :meth:`update` the losses afterwards, when it has to wait for them
    anyway.

    Attributes:
        needs_losses: Whether :meth:`weights` needs the losses of the present step. The step then
            waits for its forward pass.
        needs_norms: Whether :meth:`update` needs the length of the gradients at the last layer that
            all tasks share.
        needs_new_losses: Whether :meth:`update_after` has to be told the losses on the same batch
            after the optimizer step.
        needs_indicators: Whether the method goes by how well the tasks do: :meth:`tell`.
    """

    needs_losses: ClassVar[bool] = False
    needs_norms: ClassVar[bool] = False
    needs_new_losses: ClassVar[bool] = False
    needs_indicators: ClassVar[bool] = False

    def check(self, tasks: Collection[str]) -> None:
        """Check the options against all tasks, before the first step if tasks are known by then.

        Raises:
            KeyError: The options do not fit the tasks.
        """

    @abstractmethod
    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Return the factor of each loss.

        Args:
            tasks: Names of the tasks that take part in this step if :attr:`needs_losses`; else of
                all known tasks, for which nothing needs to be waited for.
            losses: Losses of the tasks, the mean over the ranks; given if :attr:`needs_losses`.
        """

    def update(self, losses: Mapping[str, float], norms: Mapping[str, float] | None = None) -> None:
        """Learn from a step whose losses, and gradients as far as taken, were finite.

        Args:
            losses: Losses of the tasks that took part, unweighted; the mean over the ranks.
            norms: Lengths ``‖∇_W L_t‖`` of the unweighted losses' gradients, where ``W`` is the
                last layer that all tasks share; given if :attr:`needs_norms`.
        """

    def update_after(self, losses: Mapping[str, float], new_losses: Mapping[str, float]) -> None:
        """Learn from what a step did to the losses, if :attr:`needs_new_losses`.

        Args:
            losses: Losses of the tasks that took part, before the optimizer step.
            new_losses: Losses on the same batch after the optimizer step.
        """

    def tell(
        self,
        indicators: Mapping[str, float],
        errors: Collection[str] = (),
        percent: Collection[str] = (),
    ) -> None:
        """Learn from a validation, if :attr:`needs_indicators`.

        Args:
            indicators: Metric of each task that was measured, the same on every rank.
            errors: Tasks whose metric is the better the lower.
            percent: Tasks whose metric is in percent; others are fractions, or errors in any unit.
        """


class LearnedWeighting(Weighting):
    """A weighting with one learned number a task, and an Adam of its own.

    The numbers do not sit in the optimizer of the model, where gradient clipping, weight decay, a
    loss scaler and the learning rate of the model would act on them, and they on the clipping.

    Args:
        lr: Learning rate of Adam.
        weight_decay: L2 penalty in Adam.

    Attributes:
        initial: Value of the numbers at first.
        bounds: Least and largest value of the numbers.
    """

    initial: float = 0.0
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    def __init__(self, lr: float = 0.025, weight_decay: float = 0.0) -> None:
        super().__init__()
        if lr <= 0.0:
            raise ValueError(f"lr: expected more than 0, with which nothing is learned, got {lr}")
        if weight_decay < 0.0:
            raise ValueError(f"weight_decay: expected at least 0, got {weight_decay}")
        self.lr = lr
        self.weight_decay = weight_decay
        self._numbers: dict[str, float] = {}
        self._moments: dict[str, Moments] = {}

    def number(self, task: str) -> float:
        """Return the learned number of a task; the initial one if the task has not been seen."""
        return self._numbers.get(task, self.initial)

    def descend(self, gradients: Mapping[str, float]) -> None:
        """Take a step of Adam on the numbers of these tasks; the numbers of others stay."""
        low, high = self.bounds
        for task, gradient in gradients.items():
            number = self.number(task)
            gradient += self.weight_decay * number
            number, self._moments[task] = adam_step(
                number, gradient, self._moments.get(task), self.lr
            )
            self._numbers[task] = min(max(number, low), high)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "numbers": dict(self._numbers),
            "moments": dict(self._moments),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._numbers, self._moments = dict(state["numbers"]), dict(state["moments"])


class LowerBounds:
    """Lower bounds of the losses, for a method that takes their logarithms.

    Args:
        method: Name of the weighting, for errors.
        min_losses: One bound for all tasks, or bounds by name, 0 for a task not named.

    Raises:
        TypeError: ``min_losses`` is neither a number nor a dict.
    """

    def __init__(self, method: str, min_losses: float | Mapping[str, float]) -> None:
        if not isinstance(min_losses, (int, float, Mapping)):
            raise TypeError(f"min_losses: expected a number or a dict by task, got {min_losses!r}")
        self._key = f"weighting: {method}.min_losses"
        self._bounds = min_losses

    def check(self, tasks: Collection[str]) -> None:
        """Refuse a name that is no task.

        Raises:
            KeyError: A bound is given for a name that is no task.
        """
        for name in self._bounds if isinstance(self._bounds, Mapping) else ():
            if name not in tasks:
                raise KeyError(f"{self._key}: no task is called {name!r}; {suggest(name, tasks)}")

    def of(self, task: str) -> float:
        """Return the bound of a task."""
        if isinstance(self._bounds, Mapping):
            return self._bounds.get(task, 0.0)
        return self._bounds

    def above(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Return how far each loss is above its bound, without tasks whose loss is at the bound.

        A loss that is not finite is left out as well: the owner of the step deals with it.

        Raises:
            ValueError: A loss is below its bound.
        """
        left = {}
        for task, loss in losses.items():
            low = self.of(task)
            if math.isfinite(loss) and loss < low:
                raise ValueError(
                    f"{self._key}: the loss of the task {task!r} is {loss:g}, below its bound of "
                    f"{low:g}"
                )
            if math.isfinite(loss) and loss > low:
                left[task] = loss - low
        return left


def softmax(values: Mapping[Task, float]) -> dict[Task, float]:
    """Compute the softmax over the tasks."""
    top = max(values.values(), default=0.0)
    powers = {task: math.exp(value - top) for task, value in values.items()}
    total = sum(powers.values())
    return {task: power / total for task, power in powers.items()}


def geometric_mean(losses: Mapping[str, float], exponents: Mapping[str, float]) -> dict[str, float]:
    r"""Compute the derivative of :math:`\prod_k L_k^{e_k}` by each loss.

    Args:
        losses: Positive losses :math:`L_t`.
        exponents: Exponent :math:`e_t` of each; they sum to 1.
    """
    logs = {task: math.log(loss) for task, loss in losses.items()}
    mean = sum(exponents[task] * log for task, log in logs.items())
    # A step works in single precision, where a weight beyond e^80 may not be finite.
    return {t: exponents[t] * math.exp(min(mean - log, 80.0)) for t, log in logs.items()}
