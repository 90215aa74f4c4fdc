"""The gradient of a regulariser's term, from micro-batches to ``.grad``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_plugins.distributed import average, average_some
from mtl_plugins.features import Representation
from mtl_plugins.gradients import rows_of
from mtl_plugins.graph import LossGraph
from mtl_plugins.regularization.base import Regularizer
from mtl_plugins.step import Batch
from mtl_plugins.transfer import HostCopy


class Penalty:
    """Differentiates a regulariser's term, and adds the gradient to ``.grad`` after a step.

    Added at the end, the gradient mixes with nothing that is done to the gradients of the tasks.

    Args:
        regularizer: Regulariser that computes the term.
        params: All parameters that are trained.

    Attributes:
        at_features: Gradients of the last term at the features given to :meth:`take`.
    """

    def __init__(self, regularizer: Regularizer, params: Sequence[nn.Parameter]) -> None:
        self.at_features: Sequence[Tensor | None] = ()
        self._regularizer = regularizer
        self._params = params
        self._checked: set[str] = set()  # tasks whose losses can be differentiated twice
        self.clear()

    def clear(self) -> None:
        """Forget the terms."""
        self._terms: list[HostCopy] = []
        self._grads: list[Tensor | None] = [None] * len(self._params)

    def take(
        self, batch: Batch, shared: Sequence[Tensor], cut: Representation | None = None
    ) -> None:
        """Take the term of a micro-batch. The graph of the losses stays usable.

        Args:
            batch: Batch of losses.
            shared: Parameters whose gradients the term is made of.
            cut: Features whose gradients the term is made of instead, at the feature level.

        Raises:
            RuntimeError: An operation in the losses cannot be differentiated twice.
        """
        self.at_features = ()
        self._grads += [None] * (len(self._params) - len(self._grads))  # some may have joined
        dtype = torch.promote_types(self._params[0].dtype, torch.float32)
        term = torch.zeros((), dtype=dtype, device=self._params[0].device)
        finite = torch.ones_like(term)
        if len(batch.raw) > 1 and (cut.tensors if cut is not None else shared):
            try:
                # Held by the graph alone, which lets go of it on the way back.
                term = self._regularizer(self._jacobian(batch, shared, cut)).to(dtype)
                if term.requires_grad:
                    finite = self._differentiate(term * batch.share, batch.scale, cut)
            except RuntimeError as error:
                raise RuntimeError(
                    f"regularizer: the losses cannot be differentiated twice: {error}"
                ) from error
        self._terms.append(HostCopy(average(torch.stack([term.detach() * batch.share, finite]))))

    def _jacobian(
        self, batch: Batch, shared: Sequence[Tensor], cut: Representation | None
    ) -> Tensor:
        rows = self._rows(batch, shared, cut)
        one_node = cut is None and not batch.graph.tells_heads_apart
        return _in_common(rows, shared) if one_node else rows

    def _rows(self, batch: Batch, shared: Sequence[Tensor], cut: Representation | None) -> Tensor:
        losses = list(batch.scaled.values())
        tensors, edges = (shared, None) if cut is None else (cut.tensors, cut.edges)
        if batch.raw.keys() <= self._checked:
            return rows_of(losses, tensors, create_graph=True, edges=edges)
        graph = LossGraph(losses)
        if graph.hides_a_part:
            raise RuntimeError(
                "activation checkpointing hides a part of them; use use_reentrant=False, or none"
            )
        with graph.noting_once_differentiable() as lost:
            rows = rows_of(losses, tensors, create_graph=True, edges=edges)
        if lost:
            raise RuntimeError(f"there is no second derivative of {', '.join(sorted(set(lost)))}")
        self._checked |= batch.raw.keys()
        return rows

    def _differentiate(
        self, term: Tensor, scale: Tensor | None, cut: Representation | None
    ) -> Tensor:
        """Keep the gradient of the term, and tell whether it is finite (1 or 0)."""
        trained = [i for i, p in enumerate(self._params) if p.requires_grad]
        targets = [*(self._params[i] for i in trained), *(() if cut is None else cut.edges)]
        seed = None if scale is None else scale.to(term)
        grads = torch.autograd.grad(term, targets, seed, retain_graph=True, allow_unused=True)
        for i, grad in zip(trained, grads, strict=False):
            before = self._grads[i]
            if grad is not None:
                self._grads[i] = grad if before is None else before + grad
        self.at_features = grads[len(trained) :]
        norms = torch._foreach_norm([grad for grad in grads if grad is not None])
        # With a loss scale an overflow is the scaler's business.
        return torch.stack(norms).isfinite().all().to(term) if scale is None else term.new_ones(())

    def add(self) -> None:
        """Add the gradient to ``.grad``, the mean over the ranks."""
        grads = average_some(self._grads, self._params)
        for p, grad in zip(self._params, grads, strict=True):
            if grad is not None:
                p.grad = grad if p.grad is None else p.grad + grad
        self._grads, self.at_features = [None] * len(self._params), ()

    def read(self) -> tuple[Tensor, bool]:
        """Return the term, a scalar on the CPU, and whether its gradient is finite on all ranks."""
        terms, finite = torch.stack([copy.read() for copy in self._terms]).unbind(dim=1)
        return terms.sum(), bool((finite == 1.0).all())


def _in_common(jacobian: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """Leave out the columns of parameters at which one task alone has a gradient."""
    parts = jacobian.split([leaf.numel() for leaf in leaves], dim=1)
    tasks = torch.stack([part.detach().any(dim=1).sum() for part in parts]).tolist()
    shared = [part for part, count in zip(parts, tasks, strict=True) if count > 1]
    return torch.cat(shared, dim=1) if shared else jacobian[:, :0]
