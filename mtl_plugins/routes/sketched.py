"""The weights from sketches of the gradients, and one backward pass of the weighted sum."""

from __future__ import annotations

from mtl_plugins.gradients import gramian_over_ranks
from mtl_plugins.routes.base import Parts
from mtl_plugins.routes.weighted import FrugalRoute
from mtl_plugins.sketch import Sketcher
from mtl_plugins.step import Batch, Measured


class Sketched(FrugalRoute):
    """Finds the weights from sketches, see :class:`Sketcher`; every micro-batch by itself.

    Args:
        parts: Parts that the route works with.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.sketcher = Sketcher(parts.options.sketch_rows)

    def measure(self, batch: Batch) -> Measured | None:
        self.prepare(batch)
        self.take_evidence(batch)
        return self.gramian_alone(batch)

    def gramian_alone(self, batch: Batch) -> Measured:
        self.parts.watching.look(batch)
        parts, shared = self.parts, self.parts.ownership.shared
        rows = self.sketcher.take(
            batch.graph,
            {i: parts.params[i] for i in shared},
            batch.turns(),
            len(parts.tasks),
            parts.device,
        )
        gramian = gramian_over_ranks(rows, False, parts.options.sync == "sketch")
        reports = [batch.report]
        return Measured(reports, self.of_present(gramian, batch, reports), shared=bool(shared))
