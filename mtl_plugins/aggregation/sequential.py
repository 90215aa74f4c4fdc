"""Sequential: one step of the optimizer for each task in turn, on the same batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtl_plugins.aggregation.base import Aggregator


class Sequential(Aggregator):
    """A step of the optimizer for each task in turn, each at the weights moved so far (D eq. 9).

    All steps are on the same batch, in the order of the tasks. What a task does not reach, such as
    the heads of the others, has no gradient in the task's step: no weight decay, no momentum. The
    model runs once a task. Update of given gradients: their sum.
    """

    scale = "sum"
    of_features = False
    takes_turns = True

    def begin(self) -> bool:
        return True

    def __call__(self, jacobian: Tensor, tasks: Sequence[int] | None = None) -> Tensor:
        return jacobian.sum(0)
