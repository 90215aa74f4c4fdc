"""What every regulariser has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from mtl_plugins.registry import Method


class Regularizer(Method, ABC):
    """Adds a term to the loss that depends on the gradients of the tasks.

    It is differentiated through them, by all parameters, and is no task: its gradient is added to
    whatever the aggregator makes of those of the tasks.
    """

    @abstractmethod
    def __call__(self, jacobian: Tensor) -> Tensor:
        """The term.

        Args:
            jacobian: ``[T, D]``, the gradients of the tasks that take part, up to a common factor
                and one factor a task; with a graph behind it.

        Returns:
            A scalar, in at least single precision.
        """
