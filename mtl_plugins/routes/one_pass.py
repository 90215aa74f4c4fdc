"""One backward pass of the summed losses, for weights that no gradient decides."""

from __future__ import annotations

import torch

from mtl_plugins.distributed import average_grads, with_grad
from mtl_plugins.gradients import apart
from mtl_plugins.routes.base import Route
from mtl_plugins.step import Batch, Choice, Measured


class OnePass(Route):
    """The plain sum, as every framework trains it, or a multiple of it.

    The wrapper of a data-parallel run may average: :attr:`averages` says when it must not.

    Attributes:
        averages: Whether gradients are averaged here.
    """

    averages = False

    def measure(self, batch: Batch) -> Measured | None:
        self.monitor(batch)
        losses = list(batch.losses.values())
        if losses:
            sum(losses[1:], losses[0]).backward()
        if (cut := self.parts.representation) is not None:
            self.run_back(cut, cut.take_grads())
        # Read the losses now, when the device has its work.
        return Measured(batch.window.reports) if batch.aggregate else None

    def apply(self, batch: Batch, choice: Choice) -> None:
        if self.averages:
            average_grads(with_grad(self.parts.params))
        factors = set(choice.weights.values()) if choice.weights else {1.0}
        if len(factors) > 1:
            raise ValueError(
                "aggregator: needs_gradients is False for methods that weigh all tasks alike, got "
                f"the weights {choice.weights}"
            )
        if factors != {1.0}:
            reached = [p for p in self.parts.params if p.grad is not None]
            grads = [grad for grad in apart(p.grad for p in reached) if grad is not None]
            torch._foreach_mul_(grads, factors.pop())
            for p, grad in zip(reached, grads, strict=True):
                p.grad = grad
