"""Measures that a step takes on request, and that the method may not need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from mtl_plugins.distributed import average
from mtl_plugins.features import FeatureWatch, Representation
from mtl_plugins.gradients import TaskRows, rows_of
from mtl_plugins.layer_conflicts import LayerConflicts
from mtl_plugins.monitors import entropies
from mtl_plugins.step import Batch
from mtl_plugins.transfer import HostCopy


class Watching:
    """Knows what the next step is to measure, and takes the feature disentanglement.

    Args:
        representation: Features of the tasks, at the feature level.
        exact: Whether the gradients of the shared parameters are averaged over the ranks.

    Attributes:
        monitor: Whether the Gramian is wanted.
        monitor_features: Whether the feature disentanglement is wanted.
        monitor_layers: Whether the conflicts of each layer are wanted.
        layers: Counter of the conflicts; None for none.
    """

    def __init__(self, representation: Representation | None, exact: bool = True) -> None:
        self.monitor = False
        self.monitor_features = False
        self.monitor_layers = False
        self.layers: LayerConflicts | None = None
        self._representation, self._exact = representation, exact
        self._watch: FeatureWatch | None = None
        self._disentanglement: HostCopy | None = None

    def watch(self, module: nn.Module) -> None:
        """Choose the module whose outputs are the features."""
        if self._watch is not None:
            self._watch.remove()
        self._watch = None if self._representation is not None else FeatureWatch(module)

    @property
    def features(self) -> FeatureWatch | None:
        """Outputs of the module chosen by :meth:`watch`."""
        return self._watch

    def wants_gramian(self, batch: Batch) -> bool:
        """Tell whether the Gramian of this call is wanted."""
        return (self.monitor or self.monitor_layers) and batch.aggregate

    def count_conflicts(self, batch: Batch, rows: TaskRows) -> None:
        """Count the conflicts of each layer in gradients of the shared parameters."""
        if self.layers is not None and self.monitor_layers and batch.aggregate:
            self.layers.add(rows, averaged=self._exact)

    def _wants_features(self, batch: Batch) -> bool:
        return self.monitor_features and batch.aggregate

    @contextmanager
    def passes(self, batch: Batch, rows: TaskRows) -> Iterator[Callable[[int], None]]:
        """Watch the passes of the tasks.

        Args:
            batch: The call.
            rows: Rows that the passes fill; at the feature level with the features' gradients.

        Yields:
            A function to call with the number of each task before its pass.
        """
        if not self._wants_features(batch):
            yield lambda task: None
        elif self._representation is not None:
            yield lambda task: None
            self._keep(rows.matrix())
        else:
            self._features()
            assert self._watch is not None
            with self._watch.collecting() as turn:
                yield turn
            self._keep(self._watch.rows(len(batch.tasks)))

    def look(self, batch: Batch) -> None:
        """Take the feature disentanglement in a step that runs no backward pass for each task."""
        if self._wants_features(batch):
            turns = dict(batch.turns())
            tensors, edges = self._features()
            losses = [turns.get(t) for t in range(len(batch.tasks))]
            self._keep(rows_of(losses, tensors, edges=edges))

    def _features(self) -> tuple[Sequence[Tensor], Sequence[GradientEdge]]:
        source = self._representation or self._watch
        if source is None or not source.tensors:
            raise ValueError(
                "monitor_features: choose by watch() a module that is called in training mode and "
                "has something to train before it"
            )
        return source.tensors, source.edges

    def _keep(self, rows: Tensor) -> None:
        total, count = average(torch.stack(entropies(rows.float()))).unbind()
        self._disentanglement = HostCopy(total / count)

    def result(self) -> Tensor | None:
        """Return the feature disentanglement, if it was taken."""
        found, self._disentanglement = self._disentanglement, None
        return None if found is None else found.read()
