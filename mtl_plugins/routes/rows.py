"""The parameter level: one backward pass a task, into the rows of one buffer."""

from __future__ import annotations

import torch

from mtl_plugins.distributed import average_grads
from mtl_plugins.gradients import TaskRows, combine
from mtl_plugins.ownership import reach_of
from mtl_plugins.routes.base import Parts, Route
from mtl_plugins.step import Batch, Choice, Measured


class ParameterLevel(Route):
    """Aggregates the gradients of the shared parameters, once for all micro-batches.

    Args:
        parts: Parts that the route works with.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._rows = TaskRows(parts.device)
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
            views = [row[len(self._shared) :] for row in self._rows.views]
            reach, broken = reach_of(views)
            batch.window.nonfinite |= {self.parts.tasks[t] for t in broken}
            if ownership.take_evidence(dict(zip(self._doubtful, reach, strict=True))):
                self._lay_out(filled=True)
        return self.measured(self._rows, len(self._shared), batch, reports)

    def apply(self, batch: Batch, choice: Choice) -> None:
        params, ownership, names = self.parts.params, self.parts.ownership, self.parts.tasks
        own = [choice.own.get(name, 1.0) for name in names]
        for i, p in enumerate(params):
            owner = ownership.owner(i)
            if choice.own and owner >= 0 and p.grad is not None:
                p.grad.mul_(own[owner])
        shared = self._rows.first(len(self._shared))
        update = choice.update
        if update is None:
            assert choice.weights is not None
            # The rows of absent tasks are zero.
            weights = [choice.weights.get(name, 0.0) for name in names]
            update = combine(torch.tensor(weights, dtype=torch.float64), shared)
        for i, grad in zip(self._shared, self._rows.split(update), strict=True):
            if ownership.reached(i):  # otherwise no gradient, as after any backward pass
                params[i].grad = grad
        for k, i in enumerate(self._doubtful, start=len(self._shared)):
            if ownership.reached(i):
                owner = ownership.owner(i)
                found = [row[k] for row in self._rows.views]
                # Without an owner the rows are zero, or not finite.
                params[i].grad = (
                    found[owner] * own[owner] if owner >= 0 else torch.stack(found).sum(dim=0)
                )
        averaged = set(self._shared) if self.parts.options.sync == "exact" else set()
        average_grads(
            [p for i, p in enumerate(params) if ownership.reached(i) and i not in averaged]
        )
        if self.parts.options.weights_every > 1:  # the next steps need no buffer
            self._rows = TaskRows(self.parts.device)

    def _lay_out(self, filled: bool) -> None:
        """Make the buffer hold the shared parameters, and behind them the doubtful ones.

        Args:
            filled: Whether the buffer has gradients of this step in it.
        """
        params, ownership = self.parts.params, self.parts.ownership
        before = {*self._shared, *self._doubtful}
        shared, doubtful = ownership.shared, ownership.doubtful
        same = (shared, doubtful) == (self._shared, self._doubtful)
        if filled and same and len(self._rows.data) == len(self.parts.tasks):
            return
        self._shared, self._doubtful = shared, doubtful
        leaves = [params[i] for i in (*shared, *doubtful)]
        if not filled:
            self._rows.arrange(leaves, len(self.parts.tasks))
            return
        held, self._rows = self._rows, TaskRows(self.parts.device)
        self._rows.arrange(leaves, len(self.parts.tasks))
        self._rows.take(held)
        # The gradient of a parameter that was a task's own lies in .grad, and moves to its row.
        for k, i in enumerate((*shared, *doubtful)):
            if i not in before and (grad := params[i].grad) is not None:
                self._rows.views[self._by_graph[i]][k].add_(grad)
                params[i].grad = None
