"""What every loss weighting has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from mtl_plugins.registry import Method


class Weighting(Method, ABC):
    """Weights the losses of the tasks before any gradient is taken."""

    @abstractmethod
    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        """The factor of each loss.

        Args:
            losses: The scalar losses of the tasks that take part in this step.
        """
