"""What one step is about: what it was given, what its passes found, and what it shows to hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from mtl_plugins.graph import LossGraph
from mtl_plugins.report import Report


@dataclass(frozen=True)
class Step:
    """What one step computed, for hooks. All tensors are on the CPU.

    Attributes:
        tasks: The ``T`` tasks that took part, on any rank; where every micro-batch is aggregated by
            itself, in the last one.
        losses: ``[T]``, as given; the mean over the ranks.
        weights: ``[T]``, the factor of each loss in the update of what the tasks share; None if the
            aggregator combines the gradients in another way.
        gramian: ``[T, T]`` of the (weighted) losses' gradients; None if not computed.
        disentanglement: FD, a scalar; None if not asked for.
        penalty: The regulariser's term, a scalar; None without one.
        nonfinite: Those of the tasks whose loss or gradient is not finite, and
            ``"the regularizer"``. If there are any, the step was skipped.
    """

    tasks: tuple[str, ...]
    losses: Tensor
    weights: Tensor | None
    gramian: Tensor | None
    disentanglement: Tensor | None = None
    penalty: Tensor | None = None
    nonfinite: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """One call.

    Attributes:
        raw: The losses of this rank, as given, in the order of the tasks.
        factors: Of the weighting, for the tasks of all ranks.
        scale: Of a loss scaler.
        share: What the losses of this call count in the step.
        aggregate: Whether it is the last of some micro-batches.
        report: The losses of all ranks.
        seen: The graph, if it was looked at already.
    """

    raw: Mapping[str, Tensor]
    factors: Mapping[str, float]
    scale: Tensor | None
    share: float
    aggregate: bool
    report: Report
    seen: LossGraph | None = None

    @cached_property
    def graph(self) -> LossGraph:
        """That behind :attr:`raw`."""
        return self.seen or LossGraph(list(self.raw.values()))

    @cached_property
    def scaled(self) -> Mapping[str, Tensor]:
        """The losses of this rank, times their share and the loss scale."""
        if self.scale is None and self.share == 1.0:
            return self.raw
        by = self.share if self.scale is None else self.share * self.scale
        return {name: loss * by for name, loss in self.raw.items()}

    @cached_property
    def losses(self) -> Mapping[str, Tensor]:
        """What is run back: the losses of this rank, weighted and scaled."""
        return {
            name: loss if self.factors[name] == 1.0 else self.factors[name] * loss
            for name, loss in self.scaled.items()
        }

    @property
    def seeds(self) -> list[Tensor]:
        """The gradients of :attr:`raw` that do the same."""
        seeds = [
            torch.full_like(loss, self.share * self.factors[name])
            for name, loss in self.raw.items()
        ]
        return seeds if self.scale is None else [(s * self.scale).to(s) for s in seeds]


@dataclass
class Outcome:
    """What a pass found.

    Attributes:
        weights: Of each task, and perhaps of absent ones; None if there are none.
        gramian: Of the tasks of ``reports``; None if not computed.
        reports: Of the calls that it is about.
        own: Factors of the gradients of what a task has alone; empty for 1.
    """

    weights: Mapping[str, float] | None
    gramian: Tensor | None
    reports: Sequence[Report]
    own: Mapping[str, float] = field(default_factory=dict)
