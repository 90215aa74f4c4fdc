"""Base class of the regularisers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from mtl_plugins.registry import Method


class Regularizer(Method, ABC):
    """Adds a term to the loss that depends on the gradients of the tasks.

    The term is differentiated through these gradients, by all parameters, and is no task: its
    gradient is added to the update that the aggregator makes.
    """

    @abstractmethod
    def __call__(self, jacobian: Tensor) -> Tensor:
        """Compute the term.

        Args:
            jacobian: Gradients ``[T, D]`` of the tasks that take part, up to a common factor and
                one factor a task; with a graph behind them.

        Returns:
            A scalar, in at least single precision.
        """
