"""The level of chosen layers: their gradients decide, one pass brings the weighted sum back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mtl_plugins.gradients import gramian_over_ranks, rows_of
from mtl_plugins.graph import LossGraph
from mtl_plugins.nodes import HIDDEN, SEVERAL
from mtl_plugins.routes.base import Parts
from mtl_plugins.routes.weighted import WeightedPass
from mtl_plugins.step import Batch, Measured


class LayersLevel(WeightedPass):
    """Finds the weights from the gradients of some shared layers; every micro-batch by itself.

    Args:
        parts: Parts that the route works with.
        layers: Module whose shared parameters count.
    """

    def __init__(self, parts: Parts, layers: nn.Module) -> None:
        super().__init__(parts)
        self._layers = layers
        self._checked: set[str] = set()  # tasks that reach the layers

    def measure(self, batch: Batch) -> Measured | None:
        self.prepare(batch)
        self.take_evidence(batch)
        self.parts.watching.look(batch)
        chosen = self._shared()
        if batch.raw.keys() - self._checked:
            self._check(batch, chosen)
            self._checked |= batch.raw.keys()
        turns = dict(batch.turns())
        losses = [turns.get(t) for t in range(len(self.parts.tasks))]
        exact = self.parts.options.sync == "exact"
        gramian = gramian_over_ranks(rows_of(losses, chosen), False, exact)
        reports = [batch.report]
        return Measured(reports, self.of_present(gramian, batch, reports))

    def _shared(self) -> list[Tensor]:
        """Return the parameters of the layers that tasks share, the same on every rank."""
        mine = {id(p) for p in self._layers.parameters()}
        pairs = zip(self.parts.params, self.parts.ownership.by_graph(), strict=True)
        found: list[Tensor] = [
            p for p, t in pairs if t == SEVERAL and id(p) in mine and p.requires_grad
        ]
        if not found:
            raise ValueError(
                "layers: the tasks share no parameter of the module that is trained; choose a "
                "module that all losses go through, such as the neck"
            )
        return found

    def _check(self, batch: Batch, chosen: Sequence[Tensor]) -> None:
        """Refuse losses that go past the layers: their weight would always be 0."""
        for name, loss in batch.raw.items():
            owners = LossGraph([loss]).owners(chosen)
            if HIDDEN in owners:
                raise ValueError(
                    "layers: reentrant activation checkpointing hides the module; choose one that "
                    "is not inside of it, or checkpoint with use_reentrant=False"
                )
            if all(t < 0 for t in owners):
                raise ValueError(
                    f"layers: the loss of task {name!r} does not go through the module; choose one "
                    "that all losses go through, such as the neck"
                )
