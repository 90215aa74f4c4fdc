"""The feature level: heads are run back once a task, the trunk once for all."""

from __future__ import annotations

from mtl_plugins.distributed import average_grads, with_grad, world_size
from mtl_plugins.features import Representation
from mtl_plugins.graph import LossGraph
from mtl_plugins.nodes import SEVERAL
from mtl_plugins.routes.base import Parts, Route
from mtl_plugins.step import Batch, Choice, Measured


class FeatureLevel(Route):
    """Aggregates the gradients of a representation; every micro-batch by itself.

    Args:
        parts: Parts that the route works with.
        representation: Features where the graph is cut.
    """

    def __init__(self, parts: Parts, representation: Representation) -> None:
        super().__init__(parts)
        self._cut = representation
        self._rows = self.rows_of(())
        self._checked: set[str] = set()  # tasks that reach the trunk through the cut alone

    def measure(self, batch: Batch) -> Measured | None:
        if self._cut.tensors and not batch.raw.keys() <= self._checked:
            self._check(batch)
            self._checked |= batch.raw.keys()
        self._rows = self.fill_features(self._cut, batch)
        return self.measured(self._rows, batch, [batch.report])

    def apply(self, batch: Batch, choice: Choice) -> None:
        self.run_back(self._cut, self.chosen(self._rows, choice))
        self._rows = self.rows_of(())
        if batch.aggregate and world_size() > 1:
            average_grads(with_grad(self.parts.params))

    def _check(self, batch: Batch) -> None:
        """Refuse losses that reach the trunk by a way past the representation."""
        behind = LossGraph(self._cut.outputs).owners(self.parts.params)
        for name, loss in batch.raw.items():
            around = LossGraph([loss]).owners(self.parts.params)
            # Parameters that checkpointing hides are not known to be reached.
            if any(
                a >= 0 and (b >= 0 or b == SEVERAL) for a, b in zip(around, behind, strict=True)
            ):
                raise ValueError(
                    f"representation: the loss of task {name!r} reaches parameters before the "
                    "module by another way. Choose a module that all losses go through, such as "
                    "the backbone"
                )
