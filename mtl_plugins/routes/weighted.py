"""One backward pass of the weighted sum, by weights that are known or cheap in memory."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from mtl_plugins.distributed import average, average_grads, world_size
from mtl_plugins.gradients import grads_set_aside
from mtl_plugins.nodes import SEVERAL
from mtl_plugins.ownership import reach_of
from mtl_plugins.routes.base import Parts, Route
from mtl_plugins.step import Batch, Choice, Measured
from mtl_plugins.transfer import send


class WeightedPass(Route):
    """Weighs the gradients of what tasks share; what a task has alone has a factor of its own."""

    def prepare(self, batch: Batch) -> None:
        """Learn from all ranks what is shared."""
        options, ownership = self.parts.options, self.parts.ownership
        if options.sync == "exact" and world_size() > 1:
            if options.low_memory:
                raise ValueError(
                    "low_memory: no rank holds the gradients of the tasks, so that they cannot be "
                    "averaged; it takes sync='gramian' with several ranks"
                )
            if options.gramian == "sketch":
                raise ValueError(
                    "gramian: with 'sketch' no rank holds the gradients of the tasks, so that they "
                    "cannot be averaged; with several ranks it takes sync='sketch', or 'gramian'"
                )
        if batch.report.changed:
            ownership.agree()
        by_graph = zip(self.parts.params, ownership.by_graph(), strict=True)
        batch.graph.share([p for p, t in by_graph if t == SEVERAL])

    def take_evidence(self, batch: Batch) -> None:
        """Look at gradients while it is not known who reaches what; not in the steps after that."""
        params, tasks, ownership = self.parts.params, self.parts.tasks, self.parts.ownership
        unsettled = ownership.unsettled(tasks.index(name) for name in batch.report.losses)
        if unsettled:
            doubtful = ownership.doubtful
            rows = self.rows_of([params[i] for i in doubtful])
            turns = [(t, loss) for t, loss in batch.turns() if t in unsettled]
            with grads_set_aside(params):
                rows.fill(turns, lambda task: None, retain_graph=True)
            reach, broken = reach_of(rows.views)
            batch.window.nonfinite |= {tasks[t] for t in broken}
            ownership.take_evidence(dict(zip(doubtful, reach, strict=True)))

    def apply(self, batch: Batch, choice: Choice) -> None:
        weights, ownership = choice.weights, self.parts.ownership
        assert weights is not None
        if batch.raw:
            # Doubtful parameters look shared in the graph: their gradients come weighted.
            owned = {i: ownership.owner(i) for i in ownership.doubtful}
            before = {i: self.parts.params[i].grad for i in owned}
            for i in owned:
                self.parts.params[i].grad = None
            lost = {t for t in owned.values() if t >= 0 and not weights.get(self.parts.tasks[t])}
            rescued = self._rescue(batch, owned, lost)
            with ownership.noting_arrivals():
                batch.graph.weighted_backward(
                    batch.seeds,
                    [weights[name] for name in batch.raw],
                    [choice.own.get(name, 1.0) for name in batch.raw],
                )
            for i, t in owned.items():
                p = self.parts.params[i]
                if t >= 0 and p.grad is not None:
                    name = self.parts.tasks[t]
                    grad = rescued[i] if t in lost else p.grad / weights[name]
                    p.grad = None if grad is None else grad * choice.own.get(name, 1.0)
                if (earlier := before[i]) is not None:
                    p.grad = earlier if p.grad is None else earlier + p.grad
        if batch.aggregate:
            if any(report.changed for report in batch.window.reports):
                ownership.agree()
            average_grads([p for i, p in enumerate(self.parts.params) if ownership.reached(i)])

    def _rescue(
        self, batch: Batch, owned: dict[int, int], lost: set[int]
    ) -> dict[int, Tensor | None]:
        """Take the own gradients of tasks whose weight is zero; absent ones have none."""
        found: dict[int, Tensor | None] = {}
        for task, loss in dict(batch.turns()).items() if lost else ():
            if task in lost:
                mine = [i for i, t in owned.items() if t == task]
                with grads_set_aside(self.parts.params):
                    loss.backward(retain_graph=True)
                    found |= {i: self.parts.params[i].grad for i in mine}
        return found | {i: None for i, t in owned.items() if t in lost and i not in found}


class FrugalRoute(WeightedPass):
    """Finds the weights without keeping the gradients; every micro-batch by itself."""

    @abstractmethod
    def gramian_alone(self, batch: Batch) -> Measured:
        """Take the Gramian without any rows."""


class LowMemory(FrugalRoute):
    """Takes all tasks down the graph together, and no gradient is kept."""

    def measure(self, batch: Batch) -> Measured | None:
        self.prepare(batch)
        return self.gramian_alone(batch)

    def gramian_alone(self, batch: Batch) -> Measured:
        self.parts.watching.look(batch)
        params, ownership = self.parts.params, self.parts.ownership
        count, shared, doubtful = len(self.parts.tasks), ownership.shared, ownership.doubtful
        total = torch.zeros(count, count, dtype=torch.float64, device=self.parts.device)
        apart = [torch.zeros_like(total) for _ in doubtful]
        if batch.raw:
            tasks = [self.parts.tasks.index(name) for name in batch.raw]
            here = send(torch.tensor(tasks), self.parts.device)
            found, others = batch.graph.gramians(
                [params[i] for i in shared], [params[i] for i in doubtful], batch.seeds
            )
            for everyone, some in zip([total, *apart], [found, *others], strict=True):
                everyone[here[:, None], here] = some
        if doubtful:
            lengths = [[g[t, t] for g in apart] for t in range(count)]
            reach, broken = reach_of(lengths)
            batch.window.nonfinite |= {self.parts.tasks[t] for t in broken}
            ownership.take_evidence(dict(zip(doubtful, reach, strict=True)))
            now_shared = set(ownership.shared)
            total += sum(g for i, g in zip(doubtful, apart, strict=True) if i in now_shared)
        exact = self.of_present(average(total).cpu(), batch, [batch.report])
        # The dtype tells a method how accurate the Gramian is, unless it is beyond that dtype.
        rounded = exact.to(torch.promote_types(torch.float32, params[0].dtype))
        gramian = rounded if rounded.isfinite().all() else exact
        return Measured([batch.report], gramian, shared=bool(ownership.shared))


class KnownWeights(WeightedPass):
    """Takes the weights that were found last, see ``weights_every``.

    Args:
        parts: Parts that the route works with.
        frugal: Route that measures in the other steps, if that keeps no gradients.
    """

    def __init__(self, parts: Parts, frugal: FrugalRoute | None) -> None:
        super().__init__(parts)
        self._frugal = frugal

    def measure(self, batch: Batch) -> Measured | None:
        self.prepare(batch)
        self.take_evidence(batch)
        if self._frugal is not None and self.parts.watching.wants_gramian(batch):
            self.monitored = self._frugal.gramian_alone(batch)
        else:
            self.monitor(batch)
        return Measured(batch.window.reports)
