"""The gradient of a regulariser's term, from micro-batches to ``.grad``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_plugins.distributed import average, world_size
from mtl_plugins.gradients import rows_of
from mtl_plugins.graph import LossGraph
from mtl_plugins.regularization.base import Regularizer
from mtl_plugins.report import HostCopy
from mtl_plugins.step import Batch


class Penalty:
    """Differentiates a regulariser's term, and adds that to ``.grad`` at the end of the step.

    Not before, so that it mixes with nothing that is done to the gradients of the tasks.

    Args:
        regularizer: Whose term it is.
        params: All that are trained.

    Attributes:
        at_features: The gradients of the last term at the features given to :meth:`take`.
    """

    def __init__(self, regularizer: Regularizer, params: Sequence[nn.Parameter]) -> None:
        self.at_features: Sequence[Tensor | None] = ()
        self._regularizer = regularizer
        self._params = params
        self._can_differentiate_twice = False  # as far as known
        self.clear()

    def clear(self) -> None:
        """Forgets the terms."""
        self._terms: list[HostCopy] = []
        self._grads: list[Tensor | None] = [None] * len(self._params)

    def take(self, batch: Batch, shared: Sequence[Tensor], features: Sequence[Tensor]) -> None:
        """Takes the term of a micro-batch. The graph of the losses stays usable.

        Args:
            batch: The losses.
            shared: Parameters whose gradients the term is made of.
            features: The same where there are any, instead of the parameters.

        Raises:
            RuntimeError: Something in the losses cannot be differentiated twice.
        """
        self.at_features = ()
        term = torch.zeros((), device=self._params[0].device)
        leaves = features or shared
        if len(batch.raw) > 1 and leaves:
            trained = [i for i, p in enumerate(self._params) if p.requires_grad]
            targets = [*(self._params[i] for i in trained), *features]
            try:
                term = self._regularizer(self._jacobian(list(batch.scaled.values()), leaves))
                seed = None if batch.scale is None else batch.scale.to(term)
                grads = torch.autograd.grad(
                    term, targets, seed, retain_graph=True, allow_unused=True
                )
            except RuntimeError as error:
                raise RuntimeError(
                    f"regularizer: the losses cannot be differentiated twice: {error}"
                ) from error
            for i, grad in zip(trained, grads, strict=False):
                before = self._grads[i]
                self._grads[i] = grad if before is None or grad is None else before + grad
            self.at_features = grads[len(trained) :]
        self._terms.append(HostCopy(average(term.detach())))

    def _jacobian(self, losses: Sequence[Tensor], leaves: Sequence[Tensor]) -> Tensor:
        if self._can_differentiate_twice:
            return rows_of(losses, leaves, create_graph=True)
        with LossGraph(losses).noting_once_differentiable() as lost:
            rows = rows_of(losses, leaves, create_graph=True)
        if lost:
            raise RuntimeError(f"there is no second derivative of {', '.join(sorted(set(lost)))}")
        self._can_differentiate_twice = True
        return rows

    def add(self) -> None:
        """Adds the gradient to ``.grad``: the mean over micro-batches and ranks."""
        for p, grad in zip(self._params, self._grads, strict=True):
            if world_size() > 1 and p.requires_grad:
                grad = average(torch.zeros_like(p) if grad is None else grad.contiguous())
            if grad is not None:
                grad = grad / len(self._terms)
                p.grad = grad if p.grad is None else p.grad.add_(grad)

    def value(self) -> Tensor:
        """The term, likewise; a scalar on the CPU."""
        return torch.stack([term.read() for term in self._terms]).mean()
