"""Values of one step: its inputs, the findings of its parts, and its results for hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from mtl_plugins.distributed import world_size
from mtl_plugins.gradients import TaskRows
from mtl_plugins.graph import LossGraph
from mtl_plugins.report import Report
from mtl_plugins.transfer import HostCopy
from mtl_plugins.window import REGULARIZER, Window


@dataclass(frozen=True)
class Batch:
    """One call: a micro-batch, or a whole batch.

    Attributes:
        raw: Losses of this rank, as given, in the order of the tasks.
        tasks: Names of all tasks.
        window: Step that the call is a part of.
        scale: Factor of a loss scaler.
        share: Weight of this call's losses in the step.
        aggregate: Whether the call is the last of some micro-batches.
        report: Losses of all ranks.
        seen: Graph behind the losses, if it was looked at already.
        host_scale: The scale on its way to the CPU.
    """

    raw: Mapping[str, Tensor]
    tasks: Sequence[str]
    window: Window
    scale: Tensor | None
    share: float
    aggregate: bool
    report: Report
    seen: LossGraph | None = None
    host_scale: HostCopy | None = None

    @cached_property
    def graph(self) -> LossGraph:
        """The graph behind :attr:`raw`."""
        return self.seen or LossGraph(list(self.raw.values()))

    @cached_property
    def scaled(self) -> Mapping[str, Tensor]:
        """Losses of this rank, times their share and the loss scale."""
        if self.scale is None and self.share == 1.0:
            return self.raw
        by = self.share if self.scale is None else self.share * self.scale
        return {name: loss * by for name, loss in self.raw.items()}

    @cached_property
    def losses(self) -> Mapping[str, Tensor]:
        """Losses that are run back: the losses of this rank, weighted and scaled."""
        factors = self.window.factors
        return {
            name: loss if factors[name] == 1.0 else factors[name] * loss
            for name, loss in self.scaled.items()
        }

    @property
    def seeds(self) -> list[Tensor]:
        """Gradients that the passes from :attr:`raw` start with: weight times scale."""
        seeds = [
            torch.full_like(loss, self.share * self.window.factors[name])
            for name, loss in self.raw.items()
        ]
        return seeds if self.scale is None else [(s * self.scale).to(s) for s in seeds]

    def turns(self, losses: Mapping[str, Tensor] | None = None) -> list[tuple[int, Tensor]]:
        """Put the losses in the order of their passes, the same on every rank.

        Args:
            losses: Loss of each task; by default weighted and scaled.

        Returns:
            Number and loss of each task.
        """
        losses = self.losses if losses is None else losses
        turns = list(losses.items())
        if turns and len(turns) < len(self.tasks) and world_size() > 1:
            # A synchronised batch norm waits in its backward pass for every rank: a task that
            # other ranks have takes its turn here too, with a gradient of zero.
            nothing = 0.0 * turns[0][1]
            elsewhere = self.report.losses
            turns = [(n, losses.get(n, nothing)) for n in self.tasks if n in elsewhere]
        return [(self.tasks.index(name), loss) for name, loss in turns]


@dataclass(frozen=True)
class Measured:
    """Gradients of the tasks, or what stands for them.

    Attributes:
        reports: Losses of the calls that were measured.
        gramian: Gramian ``[n, n]`` of the tasks of ``reports``, unscaled; None if not computed.
        rows: Gradients of all tasks, scaled; None if there are none.
        features: Features that the rows are gradients of; empty for parameters.
        parameters: Parameters that the rows are gradients of; empty for features.
        shared: Whether the tasks share anything.
        scale: Factor of a loss scaler in the rows; None without one.
    """

    reports: Sequence[Report]
    gramian: Tensor | None = None
    rows: TaskRows | None = None
    features: Sequence[Tensor] = ()
    parameters: Sequence[Tensor] = ()
    shared: bool = True
    scale: Tensor | None = None


@dataclass(frozen=True)
class Choice:
    """Choice of the update that the gradients give.

    Attributes:
        weights: Weight of each task, absent ones perhaps included; None if the method gives none.
        update: Update ``[D]``, where the method gives one; scaled as the rows are.
        own: Factor of the gradient of what a task has alone; 1 where there is none.
    """

    weights: Mapping[str, float] | None
    update: Tensor | None = None
    own: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """Results of one step, for hooks. All tensors are on the CPU.

    Attributes:
        tasks: Names of the ``T`` tasks that took part, on any rank; where every micro-batch is
            aggregated by itself, in the last one.
        losses: Losses ``[T]``, as given; the mean over the ranks.
        weights: Factors ``[T]`` of the losses in the update of what the tasks share; None if the
            aggregator combines the gradients in another way.
        gramian: Gramian ``[T, T]`` of the (weighted) losses' gradients; None if not computed.
        disentanglement: FD, a scalar; None if not asked for.
        penalty: The regulariser's term, a scalar; None without one.
        nonfinite: Names of the tasks whose loss or gradient is not finite, and perhaps
            ``"the regularizer"``. If there are any, the step was skipped.
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
        """Put together the findings of the parts of a step."""
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
