"""Values of one step: what it was given, what its parts found, and what it shows to hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from mtl_plugins.distributed import world_size
from mtl_plugins.graph import LossGraph
from mtl_plugins.report import Report
from mtl_plugins.window import REGULARIZER, Window


@dataclass(frozen=True)
class Batch:
    """One call: a micro-batch, or a whole batch.

    Attributes:
        raw: The losses of this rank, as given, in the order of the tasks.
        tasks: Names of all tasks.
        window: The step that the call is a part of.
        scale: Factor of a loss scaler.
        share: What the losses of this call count in the step.
        aggregate: Whether it is the last of some micro-batches.
        report: The losses of all ranks.
        seen: The graph, if it was looked at already.
    """

    raw: Mapping[str, Tensor]
    tasks: Sequence[str]
    window: Window
    scale: Tensor | None
    share: float
    aggregate: bool
    report: Report
    seen: LossGraph | None = None

    @cached_property
    def graph(self) -> LossGraph:
        """The graph behind :attr:`raw`."""
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
        """The losses that are run back: those of this rank, weighted and scaled."""
        factors = self.window.factors
        return {
            name: loss if factors[name] == 1.0 else factors[name] * loss
            for name, loss in self.scaled.items()
        }

    @property
    def seeds(self) -> list[Tensor]:
        """The gradients of :attr:`raw` that weigh and scale likewise."""
        seeds = [
            torch.full_like(loss, self.share * self.window.factors[name])
            for name, loss in self.raw.items()
        ]
        return seeds if self.scale is None else [(s * self.scale).to(s) for s in seeds]

    def turns(self, losses: Mapping[str, Tensor] | None = None) -> list[tuple[int, Tensor]]:
        """Put the losses in the order of their passes, the same on every rank.

        Args:
            losses: By default the weighted and scaled ones.

        Returns:
            Number of the task, and its loss.
        """
        losses = self.losses if losses is None else losses
        turns = list(losses.items())
        if turns and len(turns) < len(self.tasks) and world_size() > 1:
            # A synchronised batch norm waits in its backward pass for every rank: a task that
            # others have takes its turn here too, with a gradient of zero.
            nothing = 0.0 * turns[0][1]
            elsewhere = self.report.losses
            turns = [(n, losses.get(n, nothing)) for n in self.tasks if n in elsewhere]
        return [(self.tasks.index(name), loss) for name, loss in turns]


@dataclass(frozen=True)
class Measured:
    """Gradients of the tasks, or what stands for them.

    Attributes:
        reports: The losses of the calls that were measured.
        gramian: ``[n, n]`` of the tasks of ``reports``, unscaled; None if not computed.
        rows: ``[T, D]``, the gradients of all tasks, scaled; None if there are none.
        features: Features that the rows are gradients of; empty for parameters.
        shared: Whether the tasks share anything.
    """

    reports: Sequence[Report]
    gramian: Tensor | None = None
    rows: Tensor | None = None
    features: Sequence[Tensor] = ()
    shared: bool = True


@dataclass(frozen=True)
class Choice:
    """What becomes of the gradients.

    Attributes:
        weights: One a task, and perhaps of absent ones; None if the method gives none.
        update: ``[D]``, where the method gives that; scaled as the rows are.
        own: Factor of the gradient of what a task has alone; 1 where there is none.
    """

    weights: Mapping[str, float] | None
    update: Tensor | None = None
    own: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """Results of one step, for hooks. All tensors are on the CPU.

    Attributes:
        tasks: The ``T`` tasks that took part, on any rank; where every micro-batch is aggregated by
            itself, in the last one.
        losses: ``[T]``, as given; the mean over the ranks.
        weights: ``[T]``, the factor of each loss in the update of what the tasks share; None if the
            aggregator combines the gradients in another way.
        gramian: ``[T, T]`` of the (weighted) losses' gradients; None if not computed.
        disentanglement: FD, a scalar; None if not asked for.
        penalty: The regulariser's term, a scalar; None without one.
        nonfinite: The tasks whose loss or gradient is not finite, and ``"the regularizer"``. If
            there are any, the step was skipped.
    """

    tasks: tuple[str, ...]
    losses: Tensor
    weights: Tensor | None
    gramian: Tensor | None
    disentanglement: Tensor | None = None
    penalty: Tensor | None = None
    nonfinite: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        window: Window,
        measured: Measured,
        choice: Choice,
        disentanglement: Tensor | None,
        penalty: Tensor | None,
    ) -> Step:
        """Put together what the parts of a step found."""
        losses = window.totals()
        names, gramian = tuple(window.totals(measured.reports)), measured.gramian
        weights = None
        if choice.weights is not None:
            weights = torch.tensor(
                [choice.weights[name] * window.factors[name] for name in names],
                dtype=None if gramian is None else gramian.dtype,
            )
        return cls(
            names,
            torch.tensor([losses[name] for name in names]),
            weights,
            gramian,
            disentanglement,
            penalty,
            tuple(name for name in (*losses, REGULARIZER) if name in window.nonfinite),
        )
