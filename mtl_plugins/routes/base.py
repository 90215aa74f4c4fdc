"""Base class of the routes, and the parts that they work with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mtl_plugins.distributed import gather
from mtl_plugins.features import Representation
from mtl_plugins.gradients import TaskRows, grads_set_aside, gramian_over_ranks
from mtl_plugins.nodes import HIDDEN, SEVERAL, common_owner
from mtl_plugins.options import Options
from mtl_plugins.ownership import Ownership, reach_of
from mtl_plugins.regularization import Penalty
from mtl_plugins.report import Report
from mtl_plugins.step import Batch, Choice, Measured
from mtl_plugins.watching import Watching


@dataclass(frozen=True)
class Parts:
    """Parts that the routes work with; the two lists grow.

    Attributes:
        params: Parameters that are trained.
        tasks: Names of all tasks.
        options: Options of the step.
        ownership: Ownership of the parameters.
        representation: Features where the graph is cut, at the feature level.
        layers: Module whose gradients decide, at the level of layers.
        watching: Measures that hooks asked for.
        penalty: The regulariser's term.
    """

    params: list[nn.Parameter]
    tasks: list[str]
    options: Options
    ownership: Ownership
    representation: Representation | None
    layers: nn.Module | None
    watching: Watching
    penalty: Penalty | None

    @property
    def device(self) -> torch.device:
        """Device of the parameters, which a model may be moved to late."""
        return self.params[0].device


class Route(ABC):
    """A way from the losses to ``.grad``.

    Args:
        parts: Parts that the route works with.

    Attributes:
        monitored: Gradients that were measured for hooks alone; None if none were.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.monitored: Measured | None = None

    @abstractmethod
    def measure(self, batch: Batch) -> Measured | None:
        """Take the gradients of the tasks, or values in their place.

        Args:
            batch: A micro-batch.

        Returns:
            The values to choose by; None if there is nothing to choose yet.
        """

    @abstractmethod
    def apply(self, batch: Batch, choice: Choice) -> None:
        """Bring the gradients into ``.grad``, the mean over the ranks with the last micro-batch.

        Args:
            batch: Micro-batch that was measured last.
            choice: Choice by the values that were measured.
        """

    def monitor(self, batch: Batch) -> None:
        """Take measures for hooks that the method does not need; no ``.grad`` is touched."""
        self.monitored = None
        if not self.parts.watching.wants_gramian(batch):
            self.parts.watching.look(batch)
            return
        # Reentrant checkpointing refuses `inputs=`.
        with grads_set_aside(self.parts.params):
            if self.parts.representation is not None:
                rows = self.fill_features(self.parts.representation, batch, retain_graph=True)
            else:
                rows = self._fill_shared(batch)
        measured = self.measured(rows, batch, [batch.report])
        self.monitored = replace(
            measured, rows=None, features=(), parameters=()
        )  # not to be kept in memory

    def _fill_shared(self, batch: Batch) -> TaskRows:
        """Take the gradients of what the tasks share in this batch, on all ranks together."""
        found = [
            self.parts.tasks.index(list(batch.raw)[t]) if t >= 0 else t
            for t in batch.graph.owners(self.parts.params)
        ]
        flags = [SEVERAL if t == HIDDEN else t for t in found]
        everyone = gather([*flags, not batch.graph.tells_heads_apart], self.parts.device)
        *owners, doubts = everyone
        pairs = zip(self.parts.params, map(common_owner, owners), strict=True)
        rows = self.rows_of([p for p, t in pairs if t == SEVERAL])
        self.fill(rows, batch, retain_graph=True)
        if any(doubts) or HIDDEN in found:
            reach, _ = reach_of(rows.views)
            leaves = [p for p, tasks in zip(rows.leaves, reach, strict=True) if len(tasks) > 1]
            shared = self.rows_of(leaves)
            shared.take(rows)
            return shared
        return rows

    def rows_of(self, leaves: Sequence[Tensor]) -> TaskRows:
        """Make room for the gradients of all tasks on some leaves."""
        return TaskRows(leaves, len(self.parts.tasks), self.parts.device)

    def fill(self, rows: TaskRows, batch: Batch, retain_graph: bool = False) -> None:
        """Run each task back into the task's row."""
        arrivals = self.parts.ownership.noting_arrivals()
        with self.parts.watching.passes(batch, rows) as announce, arrivals:
            rows.fill(batch.turns(), announce, retain_graph)

    def fill_features(
        self, cut: Representation, batch: Batch, retain_graph: bool = False
    ) -> TaskRows:
        """Run each task back to the features."""
        rows = self.rows_of(cut.tensors)
        views = [rows.split(row) for row in rows.matrix()]  # gradients of features may share memory
        turns = batch.turns()
        layers = batch.graph.shared_layers(self.parts.params)
        retain_to_the_end = retain_graph or layers.others is not None
        with self.parts.watching.passes(batch, rows) as announce, layers.summing():
            for i, (task, loss) in enumerate(turns):
                announce(task)
                retain = retain_to_the_end or i + 1 < len(turns)
                loss.backward(retain_graph=retain, inputs=layers.others)
                for view, grad in zip(views[task], cut.take_grads(), strict=True):
                    if grad is not None:
                        view.copy_(grad)
        if not retain_graph:  # otherwise no gradient of a parameter is asked for
            layers.run_back()
        return rows

    def measured(self, rows: TaskRows, batch: Batch, reports: Sequence[Report]) -> Measured:
        """Take the Gramian of the tasks that take part.

        Args:
            rows: Gradients of the tasks on what they share.
            batch: Last micro-batch.
            reports: Losses of the calls whose gradients are in the rows.
        """
        cut = self.parts.representation
        gramian = gramian_over_ranks(rows, cut is not None, self.parts.options.sync == "exact")
        self.parts.watching.count_conflicts(batch, rows)
        return Measured(
            reports,
            self.of_present(gramian, batch, reports),
            rows,
            () if cut is None else cut.tensors,
            rows.leaves if cut is None else (),
            shared=len(rows.leaves) > 0,
            scale=batch.scale,
        )

    def chosen(self, rows: TaskRows, choice: Choice) -> list[Tensor]:
        """Return the update in the shapes of the leaves; the gradients of the tasks may be gone."""
        if choice.update is not None:
            return rows.split(choice.update)
        assert choice.weights is not None
        # The rows of absent tasks are zero.
        return rows.combined([choice.weights.get(name, 0.0) for name in self.parts.tasks])

    def of_present(self, gramian: Tensor, batch: Batch, reports: Sequence[Report]) -> Tensor:
        """Restrict a Gramian to the tasks that take part, on any rank, and unscale it."""
        present = [self.parts.tasks.index(name) for name in batch.window.totals(reports)]
        gramian = gramian[present][:, present]
        scale = batch.host_scale
        return gramian if scale is None else gramian / float(scale.read()) ** 2

    def run_back(self, cut: Representation, grads: Sequence[Tensor | None]) -> None:
        """Run the trunk back from its outputs, with the regulariser's gradient added there."""
        penalty = self.parts.penalty
        if penalty is not None and penalty.at_features:
            grads = [
                b if a is None else a if b is None else a + b
                for a, b in zip(grads, penalty.at_features, strict=True)
            ]
        cut.backward(grads)
