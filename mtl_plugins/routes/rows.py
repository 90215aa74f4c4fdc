"""The parameter level: one backward pass a task, whose gradients are kept."""

from __future__ import annotations

import torch

from mtl_plugins.distributed import average_grads, world_size
from mtl_plugins.gradients import laid_out
from mtl_plugins.ownership import reach_of
from mtl_plugins.routes.base import Parts, Route
from mtl_plugins.step import Batch, Choice, Measured


class ParameterLevel(Route):
    """Aggregates the gradients of the shared parameters, once for all micro-batches.

    Args:
        parts: Parts that the route works with.

    Attributes:
        needs_matrix: Whether the method needs more than the inner products.
    """

    needs_matrix = False

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._rows = self._doubts = self.rows_of(())
        self._shared: list[int] = []  # parameters in the rows, shared ones first
        self._doubtful: list[int] = []
        self._by_graph: list[int] = []  # owners when the rows were filled last

    def measure(self, batch: Batch) -> Measured | None:
        self._lay_out(filled=len(batch.window.reports) > 1)
        self.fill(self._rows, batch)
        self._by_graph = self.parts.ownership.by_graph()
        if not batch.aggregate:
            return None
        reports, ownership = batch.window.reports, self.parts.ownership
        if any(report.changed for report in reports):
            ownership.agree()
            self._lay_out(filled=True)
            self._by_graph = ownership.by_graph()
        if self._doubtful:
            reach, broken = reach_of(self._rows.parted(len(self._shared))[1].views)
            batch.window.nonfinite |= {self.parts.tasks[t] for t in broken}
            if ownership.take_evidence(dict(zip(self._doubtful, reach, strict=True))):
                self._lay_out(filled=True)
        self._rows, self._doubts = self._rows.parted(len(self._shared))
        return self.measured(self._rows, batch, reports)

    def apply(self, batch: Batch, choice: Choice) -> None:
        params, ownership, names = self.parts.params, self.parts.ownership, self.parts.tasks
        own = [choice.own.get(name, 1.0) for name in names]
        for i, p in enumerate(params):
            owner = ownership.owner(i)
            if choice.own and owner >= 0 and p.grad is not None:
                p.grad = p.grad * own[owner]
        for i, grad in zip(self._shared, self.chosen(self._rows, choice), strict=True):
            if ownership.reached(i):  # otherwise no gradient, as after any backward pass
                params[i].grad = grad
        for i, *found in zip(self._doubtful, *self._doubts.views, strict=True):
            if ownership.reached(i):
                owner = ownership.owner(i)
                # Without an owner the gradients are zero, or not finite.
                params[i].grad = (
                    found[owner] * own[owner] if owner >= 0 else torch.stack(found).sum(dim=0)
                )
        averaged = set(self._shared) if self.parts.options.sync == "exact" else set()
        average_grads(
            [p for i, p in enumerate(params) if ownership.reached(i) and i not in averaged]
        )
        self._rows = self._doubts = self.rows_of(())

    def _lay_out(self, filled: bool) -> None:
        """Make the rows hold the shared parameters, and behind them the doubtful ones.

        Args:
            filled: Whether there are gradients of this step in the rows.
        """
        params, ownership = self.parts.params, self.parts.ownership
        before = {*self._shared, *self._doubtful}
        shared, doubtful = ownership.shared, ownership.doubtful
        same = (shared, doubtful) == (self._shared, self._doubtful)
        if filled and same and len(self._rows.grads) == len(self.parts.tasks):
            return
        self._shared, self._doubtful = shared, doubtful
        held, self._rows = self._rows, self.rows_of([params[i] for i in (*shared, *doubtful)])
        if filled:
            self._rows.take(held)
            # The gradient of a parameter that was a task's own lies in .grad, and moves to its row.
            for k, i in enumerate((*shared, *doubtful)):
                if i not in before and (grad := params[i].grad) is not None:
                    self._rows.grads[self._by_graph[i]][k] = laid_out(grad, params[i])
                    params[i].grad = None
        exact = self.parts.options.sync == "exact" and world_size() > 1
        # Without the matrix, the inner products are many small calls.
        if self.needs_matrix or exact or self.parts.device.type != "cpu":
            self._rows.matrix()
