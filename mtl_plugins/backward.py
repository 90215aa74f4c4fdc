"""The pipeline: losses, weighting, task gradients, aggregation, ``.grad``."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mtl_plugins.aggregation import Aggregator, GramianAggregator, build_aggregator
from mtl_plugins.distributed import average, average_grads, gather, with_grad, world_size
from mtl_plugins.features import FeatureWatch, Representation
from mtl_plugins.gradients import LastLayer, TaskRows, combine, gramian_of, rows_of
from mtl_plugins.graph import NOBODY, SEVERAL, LossGraph, common_owner
from mtl_plugins.monitors import entropies
from mtl_plugins.regularization import Penalty, Regularizer, build_regularizer
from mtl_plugins.report import HostCopy, Report
from mtl_plugins.step import Batch, Outcome, Step
from mtl_plugins.weighting import Weighting, build_weighting

Level = Literal["parameter", "feature"]
Sync = Literal["exact", "gramian"]
OnNonfinite = Literal["skip", "raise"]

logger = logging.getLogger(__name__)
REGULARIZER = "the regularizer"  # among what is not finite


class MultiTaskBackward:
    """Replaces ``loss.backward()`` where there are several losses.

    Every parameter that several tasks share gets the aggregated gradient; a parameter that one task
    alone reaches gets that task's own. Both are added to ``.grad``, as ``backward()`` does.

    Args:
        params: The parameters to train. Those that require no gradient are left alone while they
            do not.
        aggregator: Name, ``dict(type=name, ...)`` or an :class:`Aggregator`.
        weighting: Name, ``dict(type=name, ...)`` or a :class:`Weighting` of the losses, before
            anything else; None for none.
        regularizer: Name, ``dict(type=name, ...)`` or a :class:`Regularizer`, whose term is added
            to the loss; None for none. In a data-parallel run each rank's term is about the
            gradients of its own batch.
        level: ``"parameter"`` aggregates the gradients of the shared parameters, at the cost of
            one backward pass through the shared part a task; ``"feature"`` aggregates those of
            ``representation`` and then runs what lies before it back once.
        representation: With ``level="feature"``, the module whose output the tasks share.
        tasks: Names of all tasks; they are numbered as they appear otherwise. Needed in a
            data-parallel run where a rank's first batch may lack a task.
        sync: What a data-parallel run averages over the ranks before it aggregates. ``"exact"``:
            the gradient of every task, so that the weights are those of the whole batch.
            ``"gramian"``: their ``T × T`` inner products, and afterwards one gradient: ``T`` times
            less traffic, but each rank's inner products have the noise of its own batch in them.
            It makes no difference at the feature level, where both need that little.
        low_memory: Takes the Gramian without keeping the ``T`` gradients of the shared parameters,
            and then runs the weighted sum back: ``T + 1`` passes through the shared part instead of
            ``T``, and twice through the heads. Every micro-batch is aggregated by itself. It does
            not go with activation checkpointing; with several ranks it takes ``sync="gramian"``,
            and where a rank lacks a task no synchronised batch norm.
        weights_every: The weights are found at every ``weights_every``-th step, and the steps in
            between are plain ones with one backward pass. A task without a gradient when they were
            found takes the mean weight of the others until the next time.
        on_nonfinite: What happens when a loss or a gradient is NaN or infinite. ``"skip"``: every
            ``.grad`` is dropped, so that the optimizer changes nothing (with a loss scaler: becomes
            NaN, so that it skips the step and lowers its scale). ``"raise"``: an error. Looked at
            are the losses, and where they are taken, the gradients of what the tasks share.
        max_skips: So many skipped steps in a row are an error. A loss scaler needs about 16 to
            come down from its first scale.
        total_steps: How often the losses are aggregated in the run, for a method with a schedule.
        steps_per_epoch: The same of an epoch; None for a run that counts iterations.

    In a data-parallel run (:mod:`torch.distributed` with several ranks) call the model without the
    synchronisation of its wrapper (``no_sync()``): averages are taken here. Only a method that
    takes no task gradients leaves that to the wrapper, see :meth:`synchronizes`.

    Attributes:
        last: The :class:`Step` taken last; None before the first.
        monitor: Set it to have the next step compute the Gramian even where the method does not
            need it. That costs a backward pass per task, and changes no ``.grad``.
        monitor_features: Set it to have the next step compute the feature disentanglement: of the
            representation, or of the module given to :meth:`watch`.

    Examples:
        >>> backward = MultiTaskBackward(model.parameters(), aggregator="PCGrad")
        >>> optimizer.zero_grad()
        >>> backward({"detection": loss_detection, "mask": loss_mask})
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        aggregator: str | Mapping[str, Any] | Aggregator = "Sum",
        weighting: str | Mapping[str, Any] | Weighting | None = None,
        regularizer: str | Mapping[str, Any] | Regularizer | None = None,
        level: Level = "parameter",
        representation: nn.Module | None = None,
        tasks: Sequence[str] = (),
        sync: Sync = "exact",
        low_memory: bool = False,
        weights_every: int = 1,
        on_nonfinite: OnNonfinite = "skip",
        max_skips: int = 20,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        self.params = list(params)
        if not any(p.requires_grad for p in self.params):
            raise ValueError("params: no parameter requires a gradient")
        self._device = self.params[0].device  # of all that ranks exchange
        self.aggregator = build_aggregator(aggregator)
        self.weighting = None if weighting is None else build_weighting(weighting)
        self.regularizer = None if regularizer is None else build_regularizer(regularizer)
        self.level = level
        self.tasks = list(tasks)
        self.sync = sync
        self.low_memory = low_memory
        self.weights_every = weights_every
        self.on_nonfinite = on_nonfinite
        self.max_skips = max_skips
        self._check_options(representation)
        self.representation = None if representation is None else Representation(representation)
        if self.weighting is not None and tasks:
            self.weighting.check(tasks)
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.last: Step | None = None
        self.monitor = False
        self.monitor_features = False
        self._watch: FeatureWatch | None = None
        self._rows = TaskRows(self._device)
        # Task that alone reached a parameter so far. What was shared once stays in the buffer: a
        # batch without some task is no reason to lay it out anew.
        self._owner = [NOBODY] * len(self.params)
        self._reached = [False] * len(self.params)  # since the last aggregation
        self._agreed: tuple[list[int], list[bool]] | None = None  # with the other ranks
        self._reports: list[Report] = []  # of the calls since the last aggregation
        self._nonfinite: set[str] = set()  # tasks, since then
        self._factors: dict[str, float] = {}  # of the losses, since then
        self._collecting = False
        self._held: list[Tensor | None] = []  # the .grad from before the collection
        # With weights_every: those found last, and for how many steps they still hold.
        self._weights: dict[str, float] = {}
        self._own: dict[str, float] = {}
        self._steps_left = 0
        self._skipped = 0  # steps in a row
        self._last_layer = LastLayer(self.params)
        self._penalty = None if self.regularizer is None else Penalty(self.regularizer, self.params)
        # Of the step that is under way, on their way to the CPU.
        self._norms: HostCopy | None = None
        self._disentanglement: HostCopy | None = None
        self._awaits_new_losses = False

    def _check_options(self, representation: nn.Module | None) -> None:
        choices = (("level", Level), ("sync", Sync), ("on_nonfinite", OnNonfinite))
        for key, valid in choices:
            value = getattr(self, key)
            if value not in get_args(valid):
                raise ValueError(f"{key}: expected one of {get_args(valid)}, got {value!r}")
        if (self.level == "feature") != (representation is not None):
            raise ValueError(
                f"representation: level={self.level!r} "
                + ("needs the module" if self.level == "feature" else "takes no module")
                + " whose output the tasks share"
            )
        for key in ("weights_every", "max_skips"):
            value = getattr(self, key)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{key}: expected an integer of at least 1, got {value!r}")
        saving = {"low_memory": self.low_memory, "weights_every": self.weights_every > 1}
        by_weights = saving | {"sync='gramian'": self.sync == "gramian"}
        for key in [key for key, used in by_weights.items() if used]:
            if not isinstance(self.aggregator, GramianAggregator):
                raise ValueError(
                    f"{key} needs an aggregator that weighs the gradients, and "
                    f"{type(self.aggregator).__name__} combines them in another way"
                )
            if key in saving and self.level == "feature":
                raise ValueError(
                    f"{key} is for level='parameter': at the feature level a step costs about as "
                    "much as a plain one anyway"
                )
        if self.aggregator.scales_own and self.level == "feature":
            raise ValueError(
                f"level: {type(self.aggregator).__name__} weighs what a task has alone too, which "
                "level='feature' leaves as it is; use level='parameter'"
            )

    def watch(self, module: nn.Module) -> None:
        """Chooses the module whose output :attr:`monitor_features` is about.

        Args:
            module: Its output is a tensor, or lists, tuples and dicts of tensors. Of no account at
                the feature level, where it is that of the representation.
        """
        if self._watch is not None:
            self._watch.remove()
        self._watch = None if self.representation is not None else FeatureWatch(module)

    def __call__(
        self,
        losses: Mapping[str, Tensor],
        scale: Tensor | None = None,
        aggregate: bool = True,
        share: float = 1.0,
    ) -> None:
        """Adds the gradients of this step to ``.grad``.

        Args:
            losses: Scalar loss of each task. A task may be absent, or its loss be a constant: it
                then takes no part in this step.
            scale: What a loss scaler multiplies the gradients by, a scalar on the device of the
                losses; None without one. They stay scaled in ``.grad``; the aggregator sees them
                unscaled.
            aggregate: False for all but the last of several micro-batches: the gradients of the
                tasks add up, and are aggregated once. At the feature level every micro-batch has
                features of its own and is aggregated by itself.
            share: What this call counts in the step: ``1 / k`` for the mean of ``k`` micro-batches.

        Raises:
            ValueError: No loss of the first batch requires a gradient, a loss is not a scalar, or
                no representation was computed.
            FloatingPointError: A loss or gradient is not finite, and ``on_nonfinite="raise"`` or
                too many steps in a row had to be skipped.
        """
        self._check(losses)
        self.tasks += [
            n for n, loss in losses.items() if loss.requires_grad and n not in self.tasks
        ]
        # In the same order on every rank.
        raw = {n: losses[n] for n in self.tasks if n in losses and losses[n].requires_grad}
        if not self._collecting:
            self._begin()
        # Under autocast the Gramian and the weighted sum would be taken in half precision.
        with torch.autocast(self._device.type, enabled=False):
            before = self._owner
            graph, changed = self._look_at(raw)
            report = Report(raw, self.tasks, self._device, changed, share)
            self._reports.append(report)
            self._factors |= self._factors_for(report)
            batch = Batch(raw, self._factors, scale, share, aggregate, report, graph)
            if self._penalty is not None:
                features = () if self.representation is None else self.representation.leaves
                shared = [p for p in self._shared_params() if p.requires_grad]
                self._penalty.take(batch, shared, features)
            if aggregate and self.weighting is not None and self.weighting.needs_norms:
                self._norms = self._norms_of(batch)
            if not self.aggregator.needs_gradients:
                outcome = self._one_pass(batch)
            elif self.representation is not None:
                outcome = self._feature_level(self.representation, batch)
            elif self.low_memory or self._steps_left:
                outcome = self._weighted_pass(batch)
            else:
                outcome = self._parameter_level(batch, before)
        if self._watch is not None:
            self._watch.clear()
        self._collecting = not aggregate
        if aggregate:
            self._finish(outcome, batch)

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Tells the weighting what the step did to the losses, if it needs that (FAMO).

        Args:
            losses: Of the same batch, after the step of the optimizer.
        """
        if self.weighting is None or self.last is None:
            return
        self._awaits_new_losses = False
        report = Report(losses, self.tasks, self._device, changed=False)
        if not self.last.nonfinite:
            old = dict(zip(self.last.tasks, self.last.losses.tolist(), strict=True))
            self.weighting.update_after(old, report.losses)

    def synchronizes(self, aggregate: bool = True) -> bool:
        """Whether a call averages ``.grad`` over the ranks, so that the model's wrapper must not.

        Args:
            aggregate: That of the call.
        """
        takes_gradients = self.aggregator.needs_gradients or self.representation is not None
        return world_size() > 1 and (takes_gradients or (self.monitor and aggregate))

    def _check(self, losses: Mapping[str, Tensor]) -> None:
        for name, loss in losses.items():
            if loss.numel() != 1:
                raise ValueError(
                    f"losses: {name!r} has the shape {tuple(loss.shape)}, expected a scalar"
                )
        # Later on a batch, or that of one rank, may be without any task.
        first = self.last is None and world_size() == 1
        if first and not any(loss.requires_grad for loss in losses.values()):
            raise ValueError(
                f"losses: none of {list(losses)} requires a gradient; is every parameter frozen?"
            )
        if self.representation is not None and not self.representation.leaves:
            raise ValueError(
                "representation: the module was not called in training mode since the last step, "
                "or nothing before it requires a gradient"
            )

    def _begin(self) -> None:
        """Prepares for what is aggregated next."""
        if self._awaits_new_losses:
            raise RuntimeError(
                f"weighting: {type(self.weighting).__name__} learns from the losses after each "
                "step; after optimizer.step(), call after_step() with those of the same batch"
            )
        self._reports, self._nonfinite, self._factors = [], set(), {}
        self._norms = self._disentanglement = None
        if self._penalty is not None:
            self._penalty.clear()
        if self.aggregator.scales_own:  # not what was there before
            self._held = [p.grad for p in self.params]
            for p in self.params:
                p.grad = None
        for part in (self.aggregator, self.weighting):
            if part is None:
                continue
            if part.total_steps is None and self.total_steps is not None:
                part.total_steps = math.ceil(self.total_steps / self.weights_every)
            part.steps_per_epoch = self.steps_per_epoch

    def _factors_for(self, report: Report) -> dict[str, float]:
        """Of the weighting: the same on every rank."""
        if self.weighting is None:
            return dict.fromkeys(self.tasks, 1.0)
        if self.weighting.needs_losses:
            return self.weighting.weights(report.losses, report.losses)
        return self.weighting.weights(self.tasks)

    def _look_at(self, losses: Mapping[str, Tensor]) -> tuple[LossGraph | None, bool]:
        """The graph, where one is needed, and whether something new is shared or reached."""
        by_task = self.aggregator.needs_gradients or self.regularizer is not None
        if self.representation is not None or not by_task:
            return None, False
        graph = LossGraph(list(losses.values()))
        found = self._owners_in(graph, losses)
        self._owner = [common_owner(pair) for pair in zip(self._owner, found, strict=True)]
        reached = self._reached if self._collecting else [False] * len(found)
        self._reached = [r or t != NOBODY for r, t in zip(reached, found, strict=True)]
        return graph, (self._owner, self._reached) != self._agreed

    def _one_pass(self, batch: Batch) -> Outcome:
        """A backward pass of the weighted sum, for weights that no gradient decides."""
        assert isinstance(self.aggregator, GramianAggregator)
        gramian = self._monitored(batch)
        constant = self.aggregator.weights(torch.zeros(len(self.tasks), len(self.tasks)))
        weights = dict(zip(self.tasks, constant.tolist(), strict=True))
        losses = batch.losses.items()
        terms = [loss if weights[n] == 1.0 else weights[n] * loss for n, loss in losses]
        if terms:
            sum(terms[1:], terms[0]).backward()
        if self.representation is not None:
            self._run_back(self.representation, [z.grad for z in self.representation.leaves])
        if batch.aggregate and self.synchronizes():
            average_grads(with_grad(self.params))
        return Outcome(weights, gramian, self._watched(gramian))

    def _monitored(self, batch: Batch) -> Tensor | None:
        """What is asked for and the method does not need: no ``.grad`` is touched.

        Returns:
            The Gramian, if that is.
        """
        if not batch.aggregate:
            return None
        if not self.monitor:
            self._look_at_features(batch)
            return None
        if self.representation is not None:
            leaves: list[Tensor] = list(self.representation.leaves)
        else:
            found = self._owners_in(batch.graph, batch.raw)
            everywhere = map(common_owner, gather(found, self._device))
            leaves = [p for p, t in zip(self.params, everywhere, strict=True) if t == SEVERAL]
        held = TaskRows(self._device)
        held.arrange(leaves, len(self.tasks))
        # Not by `inputs=`, which reentrant checkpointing refuses.
        before = [(p, p.grad) for p in self.params]
        try:
            for p in self.params:
                p.grad = None
            self._fill(held, batch, retain_graph=True)
        finally:
            for p, grad in before:
                p.grad = grad
        return self._gramian(held.data, self._reports[-1:], batch.scale)

    def _look_at_features(self, batch: Batch) -> None:
        """The feature disentanglement, where no pass of each task is to be made anyway."""
        if self.monitor_features and batch.aggregate:
            turns = dict(self._turns(batch))
            rows = rows_of([turns.get(name) for name in self.tasks], self._features())
            self._keep_disentanglement(rows)

    def _features(self) -> Sequence[Tensor]:
        """What the feature disentanglement is about."""
        if self.representation is not None:
            return self.representation.leaves
        if self._watch is None or not self._watch.features:
            raise ValueError(
                "monitor_features: choose by watch() a module that is called in training mode and "
                "has something to train before it"
            )
        return self._watch.features

    def _keep_disentanglement(self, rows: Tensor) -> None:
        total, count = average(torch.stack(entropies(rows.float()))).unbind()
        self._disentanglement = HostCopy(total / count)

    def _norms_of(self, batch: Batch) -> HostCopy | None:
        """Lengths of the tasks' gradients at the last layer that all share, on their way.

        None for want of tasks that share one in this batch.
        """
        turns = dict(self._turns(batch, batch.scaled))
        losses = [turns.get(name) for name in self.tasks]
        if self.representation is not None:
            # Every rank has features of its own, and its share of the mean loss.
            squares = rows_of(losses, self.representation.leaves).double().square().sum(dim=1)
            norms = (average(squares) / world_size()).sqrt() / batch.share
            return HostCopy(norms if batch.scale is None else norms / batch.scale)
        present = list(batch.raw if world_size() == 1 else batch.report.losses)
        weights = self._last_layer.weights(batch, present)
        if not weights:
            if len(present) > 1 and len(present) == len(self.tasks):
                raise ValueError(
                    f"weighting: {type(self.weighting).__name__} needs a layer that all tasks "
                    "share, and there is none"
                )
            return None
        rows = rows_of(losses, weights)
        if self.sync == "exact":
            rows = average(rows)
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        if self.sync != "exact":
            norms = average(norms.square()).sqrt()
        return HostCopy(
            norms / batch.share if batch.scale is None else norms / batch.scale / batch.share
        )

    def _run_back(self, representation: Representation, grads: Sequence[Tensor | None]) -> None:
        """Runs the trunk back from its outputs, with what the regulariser adds there."""
        if self._penalty is not None and self._penalty.at_features:
            grads = [
                b if a is None else a if b is None else a + b
                for a, b in zip(grads, self._penalty.at_features, strict=True)
            ]
        representation.backward(grads)

    def _feature_level(self, representation: Representation, batch: Batch) -> Outcome:
        if self.last is None:
            self._check_cut(representation, batch.raw)
        rows = TaskRows(self._device)  # not kept: the next forward pass makes other features
        rows.arrange(representation.leaves, len(self.tasks))
        self._fill(rows, batch)
        outcome, update = self._aggregate(rows.data, batch, self._reports[-1:])
        self._run_back(representation, rows.split(update))
        if batch.aggregate and self.synchronizes():
            average_grads(with_grad(self.params))
        return outcome

    def _check_cut(self, representation: Representation, losses: Mapping[str, Tensor]) -> None:
        """The losses must reach what lies before the representation through it alone."""
        behind = LossGraph(representation.outputs).owners(self.params)
        for name, loss in losses.items():
            around = LossGraph([loss]).owners(self.params)
            if any(a != NOBODY and b != NOBODY for a, b in zip(around, behind, strict=True)):
                raise ValueError(
                    f"representation: the loss of task {name!r} reaches parameters before the "
                    "module by another way. Choose a module that all losses go through, such as "
                    "the backbone"
                )

    def _parameter_level(self, batch: Batch, before: Sequence[int]) -> Outcome:
        """One pass a task, and the weighted sum of their gradients.

        Args:
            before: Owner of each parameter before this batch.
        """
        self._lay_out(before)
        self._fill(self._rows, batch)
        if not batch.aggregate:
            return Outcome(None, None, self._reports)
        before = self._owner
        if self._agree(self._reports):
            self._lay_out(before, filled=True)
        outcome, update = self._aggregate(self._rows.data, batch, self._reports)
        self._scale_own(outcome.own)
        reached_params = self._reached_params()
        used = {id(p) for p in reached_params}
        for p, grad in zip(self._rows.leaves, self._rows.split(update), strict=True):
            if id(p) in used:  # else, as after any backward pass, there is no gradient
                p.grad = grad if p.grad is None else p.grad.add_(grad)
        averaged = {id(p) for p in self._rows.leaves} if self.sync == "exact" else set()
        if self._steps_left:  # without rows
            self._rows = TaskRows(self._device)
        average_grads([p for p in reached_params if id(p) not in averaged])
        return outcome

    def _scale_own(self, own: Mapping[str, float]) -> None:
        """Multiplies the gradient of what each task has alone."""
        for p, t in zip(self.params, self._owner, strict=True):
            if own and t >= 0 and p.grad is not None:
                p.grad.mul_(own[self.tasks[t]])

    def _weighted_pass(self, batch: Batch) -> Outcome:
        """One backward pass of the weighted sum, by weights that are known or cheap in memory."""
        if self.low_memory and self.sync == "exact" and world_size() > 1:
            raise ValueError(
                "low_memory: no rank holds the gradients of the tasks, so that they cannot be "
                "averaged; it takes sync='gramian' with several ranks"
            )
        self._agree([batch.report])
        batch.graph.share(self._shared_params())
        if self._steps_left:
            gramian = None
            if self.monitor and batch.aggregate and self.low_memory:
                gramian = self._gramian_alone(batch)
            else:
                gramian = self._monitored(batch)
            weights, own = (_for_all(self.tasks, found) for found in (self._weights, self._own))
            outcome = Outcome(weights, gramian, self._watched(gramian), own)
            self._steps_left -= batch.aggregate
        else:
            outcome = self._solve(self._gramian_alone(batch), [batch.report], batch.aggregate)
        assert outcome.weights is not None
        if batch.raw:
            batch.graph.weighted_backward(
                batch.seeds,
                [outcome.weights[name] for name in batch.raw],
                [outcome.own.get(name, 1.0) for name in batch.raw],
            )
        if batch.aggregate:
            average_grads(self._reached_params())
        return outcome

    def _turns(
        self, batch: Batch, losses: Mapping[str, Tensor] | None = None
    ) -> list[tuple[str, Tensor]]:
        """The tasks to run back, in the same order on every rank.

        Args:
            losses: What to run back; by default the weighted and scaled losses.
        """
        losses = batch.losses if losses is None else losses
        turns = list(losses.items())
        if turns and len(turns) < len(self.tasks) and world_size() > 1:
            # A synchronised batch norm waits in its backward pass for every rank: a task that
            # others have takes its turn here too, with a gradient of zero.
            nothing = 0.0 * turns[0][1]
            elsewhere = batch.report.losses
            turns = [(n, losses.get(n, nothing)) for n in self.tasks if n in elsewhere]
        return turns

    def _fill(self, rows: TaskRows, batch: Batch, retain_graph: bool = False) -> None:
        """Runs each task back into its row."""
        turns = self._turns(batch)
        looks = self.monitor_features and batch.aggregate
        watch = self._watch if looks and self._features() else None
        with rows.bound() as bind, nullcontext() if watch is None else watch.collecting() as turn:
            for i, (name, loss) in enumerate(turns):
                t = self.tasks.index(name)
                bind(t)
                if turn is not None:
                    turn(t)
                loss.backward(retain_graph=retain_graph or i + 1 < len(turns))
        if looks:
            self._keep_disentanglement(rows.data if watch is None else watch.rows(len(self.tasks)))

    def _owners_in(self, graph: LossGraph, losses: Iterable[str]) -> list[int]:
        """The task that alone reaches each parameter, on this rank and in this batch."""
        index = [self.tasks.index(name) for name in losses]
        return [index[t] if t >= 0 else t for t in graph.owners(self.params)]

    def _agree(self, reports: Sequence[Report]) -> bool:
        """Learns from the other ranks what is shared and reached, if on one that has changed."""
        if world_size() == 1 or not any(report.changed for report in reports):
            return False
        everyone = gather([*self._owner, *self._reached], self._device)
        count = len(self.params)
        self._owner = [common_owner(ranks) for ranks in everyone[:count]]
        self._reached = [any(ranks) for ranks in everyone[count:]]
        self._agreed = (self._owner, self._reached)
        return True

    def _shared_params(self) -> list[nn.Parameter]:
        return [p for p, t in zip(self.params, self._owner, strict=True) if t == SEVERAL]

    def _reached_params(self) -> list[nn.Parameter]:
        return [p for p, reached in zip(self.params, self._reached, strict=True) if reached]

    def _lay_out(self, before: Sequence[int], filled: bool = False) -> None:
        """Makes the buffer hold what is shared.

        Args:
            before: Owner of each parameter when the buffer was laid out last.
            filled: Whether it has gradients of this step in it.
        """
        shared = self._shared_params()
        if not (self._collecting or filled):
            self._rows.arrange(shared, len(self.tasks))
        elif len(shared) > len(self._rows.leaves) or len(self.tasks) > len(self._rows.data):
            held, self._rows = self._rows, TaskRows(self._device)
            self._rows.arrange(shared, len(self.tasks))
            self._rows.add(held)
            # What a task had alone until now lies in .grad, and moves to its row.
            alone = {id(p): t for p, t in zip(self.params, before, strict=True) if t >= 0}
            for i, p in enumerate(shared):
                if id(p) in alone and p.grad is not None:
                    self._rows.views[alone[id(p)]][i].add_(p.grad)
                    p.grad = None

    def _aggregate(
        self, rows: Tensor, batch: Batch, reports: Sequence[Report]
    ) -> tuple[Outcome, Tensor]:
        """The weights of the rows, and the update ``[D]``."""
        gramian = self._gramian(rows, reports, batch.scale)
        present = [self.tasks.index(name) for name in self._totals(reports)]
        if not isinstance(self.aggregator, GramianAggregator):
            self._note_nonfinite(gramian, reports)
            outcome = Outcome(None, gramian, reports)
            if not present:
                return outcome, rows.sum(dim=0)
            some = rows if len(present) == len(rows) else rows[present]
            if self.representation is None:
                return outcome, self.aggregator(some, present)
            return outcome, self.aggregator.on_features(some, self.representation.leaves, present)
        outcome = self._solve(gramian, reports)
        assert outcome.weights is not None
        # The rows of absent tasks are zero.
        weights = [outcome.weights.get(name, 0.0) for name in self.tasks]
        return outcome, combine(torch.tensor(weights, dtype=gramian.dtype), rows)

    def _gramian(self, rows: Tensor, reports: Sequence[Report], scale: Tensor | None) -> Tensor:
        """That of the tasks that take part, over all ranks. Exact averages are left in the rows."""
        if self.representation is not None:
            # Every rank has features of its own, and its share of the mean loss.
            gramian = gramian_of(rows, averaged=True) / world_size()
        elif self.sync == "exact":
            gramian = gramian_of(average(rows))
        else:
            gramian = gramian_of(rows, averaged=True)
        return self._of_present(gramian, reports, scale)

    def _of_present(
        self, gramian: Tensor, reports: Sequence[Report], scale: Tensor | None
    ) -> Tensor:
        present = [self.tasks.index(name) for name in self._totals(reports)]
        gramian = gramian[present][:, present]
        return gramian if scale is None else gramian / float(scale) ** 2

    def _watched(self, gramian: Tensor | None) -> list[Report]:
        """What a pass is about whose Gramian, if any, is that of the last micro-batch."""
        return self._reports if gramian is None else self._reports[-1:]

    def _gramian_alone(self, batch: Batch) -> Tensor:
        """As :meth:`_gramian`, without any rows."""
        self._look_at_features(batch)
        count = len(self.tasks)
        everyone = torch.zeros(count, count, dtype=torch.float64, device=self._device)
        if batch.raw:
            here = torch.tensor([self.tasks.index(name) for name in batch.raw], device=self._device)
            gramian = batch.graph.gramian(self._shared_params(), batch.seeds)
            everyone[here[:, None], here] = gramian
        exact = self._of_present(average(everyone).cpu(), [batch.report], batch.scale)
        # Its dtype tells a method how accurate it is, unless it is beyond that dtype.
        rounded = exact.to(torch.promote_types(torch.float32, self.params[0].dtype))
        return rounded if rounded.isfinite().all() else exact

    def _solve(self, gramian: Tensor, reports: Sequence[Report], keep: bool = True) -> Outcome:
        """The weights of the tasks that take part."""
        assert isinstance(self.aggregator, GramianAggregator)
        losses = self._totals(reports)
        if self._note_nonfinite(gramian, reports):
            return Outcome(dict.fromkeys(losses, 1.0), gramian, reports)
        # A task without a gradient, for want of examples in this batch, has no say.
        active = [i for i in range(len(losses)) if gramian[i, i] > 0.0]
        names = [name for i, name in enumerate(losses) if i in active]
        found: dict[str, float] = {}
        own: dict[str, float] = {}
        if active:
            weights = self.aggregator.weights(
                gramian[active][:, active],
                losses=torch.tensor([losses[name] * self._factors[name] for name in names]),
                tasks=[self.tasks.index(name) for name in names],
            )
            found = dict(zip(names, weights.tolist(), strict=True))
            if self.aggregator.own_factors is not None:
                own = dict(zip(names, self.aggregator.own_factors, strict=True))
            if keep and self.weights_every > 1:
                self._weights, self._own, self._steps_left = found, own, self.weights_every - 1
        weights_of_all = dict.fromkeys(losses, 0.0) | found
        return Outcome(weights_of_all, gramian, reports, _for_all(self.tasks, own))

    def _note_nonfinite(self, gramian: Tensor, reports: Sequence[Report]) -> bool:
        losses = self._totals(reports)
        lengths = dict(zip(losses, gramian.diagonal().tolist(), strict=True))
        found = {n for n in losses if not math.isfinite(losses[n] + lengths[n])}
        self._nonfinite |= found
        return bool(found)

    def _totals(self, reports: Sequence[Report]) -> dict[str, float]:
        """The losses of the tasks that take part, summed over micro-batches by their share."""
        return {
            name: sum(report.share * report.losses.get(name, 0.0) for report in reports)
            for name in self.tasks
            if any(name in report.losses for report in reports)
        }

    def _finish(self, outcome: Outcome, batch: Batch) -> None:
        losses = self._totals(self._reports)
        self._nonfinite |= {name for name, loss in losses.items() if not math.isfinite(loss)}
        penalty = None
        if self._penalty is not None:
            self._penalty.add()
            penalty, finite = self._penalty.read()
            self._nonfinite |= set() if finite else {REGULARIZER}
        for p, grad in zip(self.params, self._held, strict=False):
            if grad is not None:
                p.grad = grad if p.grad is None else p.grad.add_(grad)
        names = tuple(self._totals(outcome.reports))
        weights = None
        if outcome.weights is not None:
            weights = torch.tensor(
                [outcome.weights[n] * self._factors[n] for n in names],
                dtype=None if outcome.gramian is None else outcome.gramian.dtype,
            )
        self.last = Step(
            names,
            torch.tensor([losses[name] for name in names]),
            weights,
            outcome.gramian,
            None if self._disentanglement is None else self._disentanglement.read(),
            penalty,
            tuple(name for name in (*losses, REGULARIZER) if name in self._nonfinite),
        )
        self.monitor = self.monitor_features = False
        if self.weighting is not None and not self.last.nonfinite:
            self._teach(self.weighting, losses)
        if self.last.nonfinite:
            self._skip(losses, batch.scale)
        else:
            self._skipped = 0

    def _teach(self, weighting: Weighting, losses: Mapping[str, float]) -> None:
        self._awaits_new_losses = weighting.needs_new_losses
        norms: dict[str, float] | None = None
        if weighting.needs_norms:
            if self._norms is None:
                return
            found = self._norms.read().tolist()
            if not all(map(math.isfinite, found)):  # the loss scaler will skip the step
                return
            norms = {n: norm for n, norm in zip(self.tasks, found, strict=True) if n in losses}
        weighting.update(losses, norms)

    def _skip(self, losses: Mapping[str, float], scale: Tensor | None) -> None:
        """Leaves gradients from which the optimizer, or the loss scaler, makes no step."""
        assert self.last is not None
        which = ", ".join(
            f"the loss of task {name!r} is {losses[name]}"
            if not math.isfinite(losses.get(name, 0.0))
            else f"the gradient of {name} is not finite"
            if name == REGULARIZER
            else f"the gradient of task {name!r} is not finite"
            for name in self.last.nonfinite
        )
        self._skipped += 1
        if self.on_nonfinite == "raise":
            raise FloatingPointError(f"{which}. on_nonfinite='skip' would skip the step")
        if self._skipped >= self.max_skips:
            raise FloatingPointError(
                f"{which}, and {self._skipped} steps in a row had to be skipped (max_skips)"
            )
        logger.warning(
            "step skipped: %s; %d in a row, %d are an error", which, self._skipped, self.max_skips
        )
        for p in self.params:
            p.grad = None if scale is None else torch.full_like(p, math.nan)

    def state_dict(self) -> dict[str, Any]:
        """The state of the method: to continue as if there had been no interruption."""
        state: dict[str, Any] = {
            "tasks": list(self.tasks),
            "owner": list(self._owner),
            "weights": dict(self._weights),
            "own": dict(self._own),
            "steps_left": self._steps_left,
            "skipped": self._skipped,
            "last_layer": self._last_layer.state_dict(),
            "aggregator": {
                "type": type(self.aggregator).__name__,
                "state": self.aggregator.state_dict(),
            },
        }
        if self.weighting is not None:
            state["weighting"] = {
                "type": type(self.weighting).__name__,
                "state": self.weighting.state_dict(),
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            ValueError: It was written with another aggregator, weighting or other tasks.
        """
        parts: dict[str, Aggregator | Weighting | None] = {
            "aggregator": self.aggregator,
            "weighting": self.weighting,
        }
        for key, part in parts.items():
            here = None if part is None else type(part).__name__
            there = state[key]["type"] if key in state else None
            if here != there:
                raise ValueError(
                    f"{key}: the checkpoint was written with {there}, this run uses {here}"
                )
        if self.tasks and list(state["tasks"]) != self.tasks:
            raise ValueError(
                f"tasks: the checkpoint has {state['tasks']}, this run has {self.tasks}"
            )
        if len(state["owner"]) != len(self.params):
            raise ValueError(
                f"params: the checkpoint has {len(state['owner'])}, this run has {len(self.params)}"
            )
        self.tasks = list(state["tasks"])
        self._owner = list(state["owner"])
        self._weights, self._own = dict(state["weights"]), dict(state["own"])
        self._last_layer.load_state_dict(state["last_layer"])
        self._steps_left, self._skipped = state["steps_left"], state["skipped"]
        self._awaits_new_losses = False
        for key, part in parts.items():
            if part is not None:
                part.load_state_dict(state[key]["state"])


def _for_all(tasks: Iterable[str], found: Mapping[str, float]) -> dict[str, float]:
    """What was found for some tasks, and its mean for the others."""
    if not found:
        return {}
    mean = sum(found.values()) / len(found)
    return {name: found.get(name, mean) for name in tasks}
