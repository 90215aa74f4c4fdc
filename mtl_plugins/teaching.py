"""The loss weighting, and what it learns before, in and after a step."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl_plugins.distributed import average, gather, world_size
from mtl_plugins.features import Representation
from mtl_plugins.gradients import rows_of
from mtl_plugins.report import Report
from mtl_plugins.state import check_keys
from mtl_plugins.step import Batch
from mtl_plugins.transfer import HostCopy
from mtl_plugins.weighting import Weighting


class LastLayer:
    """The last layer that all tasks share, of the batch with the most tasks so far.

    Args:
        params: Parameters that are trained; more may be added to the list later.
    """

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        self._params = params
        self._indices: list[int] = []
        self._tasks: set[str] = set()  # tasks that share the layer

    def weights(self, batch: Batch, tasks: Collection[str]) -> list[nn.Parameter]:
        """Find the weights of the layer; none if the tasks share none.

        Args:
            batch: Batch of losses.
            tasks: Names of the tasks that take part, on any rank.
        """
        frozen = any(not self._params[i].requires_grad for i in self._indices)
        if frozen or not set(tasks) <= self._tasks:
            found = self._find(batch) if batch.raw else []
            flags = [i in found for i in range(len(self._params))]
            everyone = gather(flags, self._params[0].device)
            self._indices = [i for i, ranks in enumerate(everyone) if any(ranks)]
            self._tasks = set(tasks) if self._indices else set()
        return [self._params[i] for i in self._indices]

    def _find(self, batch: Batch) -> list[int]:
        found, heads = batch.graph.last_common(self._params), set[int]()
        while found and not batch.graph.tells_heads_apart:
            # A head that a loss reaches with a gradient of zero is not in common.
            taken = [self._params[i] for i in found]
            rows = rows_of(list(batch.raw.values()), taken).split([p.numel() for p in taken], dim=1)
            reached = [row.any(dim=1) for row in rows]
            some = torch.stack(reached).any(dim=0)  # a loss may reach nothing at all
            apart = {i for i, r in zip(found, reached, strict=True) if not r[some].all()}
            if not apart:
                break
            heads |= apart
            found = batch.graph.last_common(self._params, heads)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the choice of the layer."""
        return {"indices": list(self._indices), "tasks": sorted(self._tasks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        check_keys("the last common layer", state, self.state_dict())
        self._indices, self._tasks = list(state["indices"]), set(state["tasks"])


class Teaching:
    """Gives a weighting the losses and lengths that it learns from.

    Args:
        weighting: Weighting; None for none.
        params: Parameters that are trained; more may be added to the list later.
        exact: Whether the gradients of the ranks are averaged before their lengths are taken.
        representation: Features of the tasks, at the feature level.

    Attributes:
        model: Whole model, where known: parts of it may be frozen.
    """

    model: nn.Module | None = None

    def __init__(
        self,
        weighting: Weighting | None,
        params: Sequence[nn.Parameter],
        exact: bool,
        representation: Representation | None,
    ) -> None:
        self.weighting = weighting
        self._params = params
        self._exact = exact
        self._representation = representation
        self._last_layer = LastLayer(params)
        self._norms: HostCopy | None = None
        self._awaits_new_losses = False

    def begin(self) -> None:
        """Prepare for the next step.

        Raises:
            RuntimeError: The weighting was not told the losses after the last step.
        """
        self._norms = None
        if self._awaits_new_losses:
            raise RuntimeError(
                f"weighting: {type(self.weighting).__name__} learns from the losses after each "
                "step; after optimizer.step(), call after_step() with those of the same batch"
            )

    def factors(self, report: Report | None, tasks: Collection[str]) -> dict[str, float]:
        """Return the factor of each loss, the same on every rank.

        Args:
            report: Losses of the step; None for a weighting that does not need them.
            tasks: Names of all tasks.
        """
        if self.weighting is None:
            return dict.fromkeys(tasks, 1.0)
        if self.weighting.needs_losses:
            assert report is not None
            return self.weighting.weights(report.losses, report.losses)
        return self.weighting.weights(tasks)

    def measure(self, batch: Batch) -> None:
        """Take the lengths of the tasks' gradients at the last layer, if the weighting needs them.

        Raises:
            ValueError: All tasks are there and share no layer, though nothing is frozen.
        """
        if not batch.aggregate or self.weighting is None or not self.weighting.needs_norms:
            return
        turns = dict(batch.turns(batch.scaled))
        losses = [turns.get(t) for t in range(len(batch.tasks))]
        if self._representation is not None:
            self._norms = self._at_features(self._representation, losses, batch)
        else:
            self._norms = self._at_last_layer(losses, batch)

    def _at_features(
        self, cut: Representation, losses: Sequence[Tensor | None], batch: Batch
    ) -> HostCopy | None:
        if not cut.tensors:  # everything before is frozen
            return None
        # Every rank has features of its own, and a share of the mean loss.
        rows = rows_of(losses, cut.tensors, edges=cut.edges)
        squares = rows.double().square().sum(dim=1)
        return _unscaled((average(squares) / world_size()).sqrt(), batch)

    def _at_last_layer(self, losses: Sequence[Tensor | None], batch: Batch) -> HostCopy | None:
        present = list(batch.raw if world_size() == 1 else batch.report.losses)
        weights = self._last_layer.weights(batch, present)
        if not weights:
            everyone = len(present) > 1 and len(present) == len(batch.tasks)
            known = self._params if self.model is None else self.model.parameters()
            if everyone and all(p.requires_grad for p in known):
                raise ValueError(
                    f"weighting: {type(self.weighting).__name__} needs a layer that all tasks "
                    "share, and there is none"
                )
            return None
        rows = rows_of(losses, weights)
        if self._exact:
            norms = torch.linalg.vector_norm(average(rows), dim=1, dtype=torch.float64)
        else:
            norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
            norms = average(norms.square()).sqrt()
        return _unscaled(norms, batch)

    def learn(self, losses: Mapping[str, float], tasks: Sequence[str]) -> None:
        """Learn from a step whose losses were finite.

        Args:
            losses: Loss of each task that took part.
            tasks: Names of all tasks.
        """
        if self.weighting is None:
            return
        self._awaits_new_losses = self.weighting.needs_new_losses
        norms: dict[str, float] | None = None
        if self.weighting.needs_norms:
            if self._norms is None:
                return
            found = self._norms.read().tolist()
            if not all(map(math.isfinite, found)):  # the loss scaler will skip the step
                return
            norms = {n: norm for n, norm in zip(tasks, found, strict=True) if n in losses}
        self.weighting.update(losses, norms)

    def learn_after(self, old: Mapping[str, float], new: Mapping[str, float]) -> None:
        """Learn from what the step of the optimizer did to the losses of the batch."""
        self._awaits_new_losses = False
        if self.weighting is not None and old:
            self.weighting.update_after(old, new)

    def tell(
        self,
        indicators: Mapping[str, float],
        errors: Collection[str],
        percent: Collection[str],
        device: torch.device,
    ) -> None:
        """Tell the weighting how well the tasks do.

        Raises:
            ValueError: There is no weighting that goes by it, or a metric does not fit.
        """
        if self.weighting is None or not self.weighting.needs_indicators:
            name = "none" if self.weighting is None else type(self.weighting).__name__
            raise ValueError(f"weighting: {name} does not go by indicators, so do not tell() any")
        # Ranks that validated on their own would go apart.
        values = torch.tensor(list(indicators.values()), dtype=torch.float64, device=device)
        mean = average(values).tolist()
        self.weighting.tell(dict(zip(indicators, mean, strict=True)), errors, percent)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the weighting."""
        state: dict[str, Any] = {"last_layer": self._last_layer.state_dict()}
        if self.weighting is not None:
            state["weighting"] = {
                "type": type(self.weighting).__name__,
                "state": self.weighting.state_dict(),
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._last_layer.load_state_dict(state["last_layer"])
        self._awaits_new_losses = False
        if self.weighting is not None:
            self.weighting.load_state_dict(state["weighting"]["state"])


def _unscaled(norms: Tensor, batch: Batch) -> HostCopy:
    norms = norms / batch.share
    return HostCopy(norms if batch.scale is None else norms / batch.scale)
