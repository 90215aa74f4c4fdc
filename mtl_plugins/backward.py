"""The pipeline: losses, weighting, task gradients, aggregation, ``.grad``."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtl_plugins.aggregation import Aggregator, build_aggregator
from mtl_plugins.choice import Chooser
from mtl_plugins.descent import Descent, check_again, check_weighting
from mtl_plugins.distributed import world_size
from mtl_plugins.features import Representation
from mtl_plugins.gradients import widened
from mtl_plugins.graph import LossGraph
from mtl_plugins.guard import Guard
from mtl_plugins.layer_conflicts import LayerConflicts
from mtl_plugins.losses import (
    explained,
    let_compiled_models_run_back_again,
    refuse_donated_buffers,
    refuse_hooks,
    refuse_incomparable,
    scalars,
)
from mtl_plugins.options import (
    SKETCH_ROWS,
    Gramian,
    Heads,
    Level,
    OnNonfinite,
    Options,
    Scale,
    Sync,
)
from mtl_plugins.ownership import Ownership
from mtl_plugins.registry import suggest
from mtl_plugins.regularization import Penalty, Regularizer, build_regularizer
from mtl_plugins.report import Again, Report
from mtl_plugins.routes import Parts, Routes
from mtl_plugins.sequential import check_turns, run_back_one
from mtl_plugins.state import check_keys
from mtl_plugins.step import Batch, Choice, Measured, Step
from mtl_plugins.task_layers import APART, passes_by_task
from mtl_plugins.teaching import Teaching
from mtl_plugins.transfer import HostCopy
from mtl_plugins.watching import Watching
from mtl_plugins.weighting import Weighting, build_weighting
from mtl_plugins.window import REGULARIZER, Window


class MultiTaskBackward:
    """Replaces ``loss.backward()`` where there are several losses.

    Every parameter that several tasks share gets the aggregated gradient; a parameter that one task
    alone reaches gets that task's own. Both are added to ``.grad``, as ``backward()`` does.

    Args:
        params: Parameters to train, or their optimizer: parameters that join the optimizer later
            are aggregated from then on. A parameter is left alone while it requires no gradient.
        aggregator: Name, ``dict(type=name, ...)`` or an :class:`Aggregator`.
        weighting: Name, ``dict(type=name, ...)`` or a :class:`Weighting` of the losses, before
            anything else; None for none.
        regularizer: Name, ``dict(type=name, ...)`` or a :class:`Regularizer`, whose term is added
            to the loss; None for none. In a data-parallel run each rank's term is about the
            gradients of its own batch.
        representation: Module whose output the tasks share, with ``level="feature"``.
        layers: Module whose shared parameters' gradients decide, with ``level="layers"``.
        tasks: Names of all tasks; by default tasks are numbered as they appear. Needed in a
            data-parallel run where a rank's first batch may lack a task.
        level, heads, scale, sync, low_memory, gramian, sketch_rows: See
            :class:`~mtl_plugins.options.Options`.
        weights_every, on_nonfinite, max_skips: See :class:`~mtl_plugins.options.Options`.
        total_steps: Number of aggregations in the run, for a method with a schedule.
        steps_per_epoch: Number of aggregations in an epoch; None for a run that counts iterations.

    In a data-parallel run (:mod:`torch.distributed` with several ranks) call the model without the
    synchronisation of its wrapper (``no_sync()``): averages are taken here. Only a method that
    takes no task gradients leaves that to the wrapper, see :meth:`synchronizes`.

    Attributes:
        last: The :class:`Step` taken last; None before the first.
        monitor: Whether the next step is to compute the Gramian even where the method does not need
            it, at the cost of a backward pass per task and without a change of any ``.grad``.
        monitor_features: Whether the next step is to compute the feature disentanglement: of the
            representation, or of the module given to :meth:`watch`.
        monitor_layers: Whether the next step is to count the conflicts of each layer, for
            :meth:`watch_layers`, at the cost of :attr:`monitor`.

    Examples:
        >>> backward = MultiTaskBackward(model.parameters(), aggregator="PCGrad")
        >>> optimizer.zero_grad()
        >>> backward({"detection": loss_detection, "mask": loss_mask})
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | torch.optim.Optimizer,
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
        layers: nn.Module | None = None,
        heads: Heads = "own",
        scale: Scale = "own",
        gramian: Gramian = "exact",
        sketch_rows: int = SKETCH_ROWS,
    ) -> None:
        self._optimizer: torch.optim.Optimizer | None = None
        if isinstance(params, torch.optim.Optimizer):
            self._optimizer, params = params, _params_of(params)
        self.params = list(dict.fromkeys(params))  # a parameter given twice counts once
        if not any(p.requires_grad for p in self.params):
            raise ValueError("params: no parameter requires a gradient")
        self.aggregator = build_aggregator(aggregator)
        self.weighting = None if weighting is None else build_weighting(weighting)
        self.regularizer = None if regularizer is None else build_regularizer(regularizer)
        self.options = Options(
            level=level,
            heads=heads,
            scale=scale,
            sync=sync,
            low_memory=low_memory,
            gramian=gramian,
            sketch_rows=sketch_rows,
            weights_every=weights_every,
            on_nonfinite=on_nonfinite,
            max_skips=max_skips,
        )
        self.options.check(self.aggregator, representation, layers)
        if self.aggregator.takes_turns:
            check_turns(self.aggregator, self.weighting, self.regularizer)
        if self.aggregator.looks_ahead:
            check_weighting(self.aggregator, self.weighting)
        if self.aggregator.needs_gradients:
            let_compiled_models_run_back_again()
        self.tasks = list(tasks)
        if self.weighting is not None and tasks:
            self.weighting.check(tasks)
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.level, self.low_memory = level, low_memory
        self.last: Step | None = None
        self.monitor = self.monitor_features = self.monitor_layers = False

        cut = None if representation is None else Representation(representation)
        self._cut = cut
        self._window: Window | None = None
        self._in_turn: bool | None = None  # for the coming step, once it is begun
        self._ownership = Ownership(self.params)
        self._penalty = None if self.regularizer is None else Penalty(self.regularizer, self.params)
        self._watching = Watching(cut, sync == "exact")
        self._teaching = Teaching(self.weighting, self.params, sync == "exact", cut)
        self._chooser = Chooser(self.aggregator, self.tasks, weights_every, heads, scale)
        self._guard = Guard(on_nonfinite, max_skips)
        self._routes = Routes(
            Parts(
                self.params,
                self.tasks,
                self.options,
                self._ownership,
                cut,
                layers,
                self._watching,
                self._penalty,
            )
        )

    def __call__(
        self,
        losses: Mapping[str, Tensor],
        scale: Tensor | None = None,
        aggregate: bool = True,
        share: float = 1.0,
        again: Again | None = None,
    ) -> None:
        """Add the gradients of this step to ``.grad``.

        Args:
            losses: Scalar loss of each task. A task may be absent, or its loss be a constant or a
                plain number: it then takes no part in this step.
            scale: Factor by which a loss scaler multiplies the gradients, a scalar on the device of
                the losses; None without one. They stay scaled in ``.grad``; the aggregator sees
                them unscaled.
            aggregate: False for all but the last of several micro-batches: the gradients of the
                tasks add up, and are aggregated once. At the feature level every micro-batch has
                features of its own and is aggregated by itself; see the options for others.
            share: Weight of this call in the step: ``1 / k`` for the mean of ``k`` micro-batches.
            again: Function that runs the model on the same batch once more, under autocast where
                the losses were, and returns the losses; for a method that looks ahead (FORUM),
                which moves the parameters in between. Such a method needs :meth:`protect`, too.

        Raises:
            ValueError: No loss of the first batch requires a gradient, a loss is not a scalar, no
                representation was computed, or the method needs ``again``.
            TypeError: A loss is no tensor and no number.
            FloatingPointError: A loss or gradient is not finite, and ``on_nonfinite="raise"`` or
                too many steps in a row had to be skipped.
        """
        if self.in_turn:
            raise RuntimeError(
                f"aggregator: {type(self.aggregator).__name__} takes this step for each task in "
                "turn; where MultiTaskBackward.in_turn is True, call take_in_turn()"
            )
        if self.aggregator.looks_ahead:
            check_again(self.aggregator, again, self._teaching.model)
        with self._passes():
            raw = self._take(losses)
            if self._window is None:
                self._window = self._open()
            elif joined := self._take_in():
                self._window.join(joined)
            window = self._window
            batch = self._batch(raw, window, scale, aggregate, share, again)
            route = self._routes.choose(self._chooser, averages=self.synchronizes(aggregate))
            if self._penalty is not None:
                self._penalty.take(batch, self._ownership.in_common, self._cut)
            self._teaching.measure(batch)
            measured = route.measure(batch)
            if measured is not None:
                descent = self._descent(measured, window, scale)
                choice = self._chooser.choose(measured, window, aggregate, descent)
                if measured.features and not window.nonfinite:
                    self._let_learn(measured, scale)
                route.apply(batch, choice)
        if aggregate:
            assert measured is not None
            self._close(window, route.monitored or measured, choice, scale)

    @property
    def in_turn(self) -> bool:
        """Whether the coming step is one of the optimizer for each task: :meth:`take_in_turn`."""
        if self._in_turn is None:
            self._tell_length()
            self._in_turn = self.aggregator.begin()
        return self._in_turn

    def take_in_turn(
        self,
        loss_of: Callable[[str], Tensor | float | None],
        step: Callable[[], None],
        scale: Callable[[], Tensor | None] = lambda: None,
    ) -> None:
        """Update the parameters once for each task, each on its loss at the weights moved so far.

        Before each update all ``.grad`` are None, so that the optimizer skips what the task does
        not reach. An update whose loss or gradient is not finite is skipped alone. The calls are
        the same on every rank; a task that no rank has takes no update.

        Args:
            loss_of: Function that runs the model on the batch and returns the scalar loss of the
                task; None for a task that the batch lacks.
            step: Function that makes a step of the optimizer.
            scale: Function that returns the factor of a loss scaler, as in :meth:`__call__`.

        Raises:
            ValueError: The tasks are not known, or a loss is not a scalar.
            FloatingPointError: See :meth:`__call__`.
        """
        if not self.tasks:
            raise ValueError(
                f"tasks: {type(self.aggregator).__name__} takes a step for each task in turn, and "
                "needs their names before the first one"
            )
        window = self._open()
        window.factors |= self._teaching.factors(None, self.tasks)
        for task in self.tasks:
            for p in self.params:
                p.grad = None
            self._guard.begin()
            found = scalars({task: loss} if (loss := loss_of(task)) is not None else {})
            factor = scale()
            with self._passes():
                finite = run_back_one(found, window, self.tasks, self.params, factor)
            if finite is False:
                self._guard.skip([task], window.totals(), self.params, factor)
            else:
                self._guard.keep()
            # A loss scaler skips the step itself.
            if finite or (finite is False and factor is not None):
                step()
        self._in_turn = None
        choice = Choice(dict.fromkeys(window.totals(), 1.0))
        self.last = Step.of(window, Measured(window.reports), choice, None, None)
        self.monitor = self.monitor_features = self.monitor_layers = False
        if not self.last.nonfinite:
            self._teaching.learn(window.totals(), self.tasks)
            self._guard.passed()

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Tell the weighting what the step did to the losses, if it needs that (FAMO).

        Args:
            losses: Losses of the same batch, after the step of the optimizer.
        """
        if self.weighting is None or self.last is None:
            return
        report = Report(scalars(losses), self.tasks, self._device, changed=False)
        old = dict(zip(self.last.tasks, self.last.losses.tolist(), strict=True))
        self._teaching.learn_after({} if self.last.nonfinite else old, report.losses)
        for features in (self._cut, self._watching.features):
            if features is not None:  # outputs of the pass that gave these losses
                features.clear()

    def tell(
        self,
        indicators: Mapping[str, float],
        errors: Collection[str] = (),
        percent: Collection[str] = (),
    ) -> None:
        """Tell the weighting how well the tasks do, if it goes by that (DTP, Achievement).

        Every rank calls this, with the same tasks in the same order; the values are averaged.

        Args:
            indicators: Metric of each task, of the last validation.
            errors: Tasks whose metric is the better the lower.
            percent: Tasks whose metric is in percent; others are fractions, or errors in any unit.

        Raises:
            KeyError: A name is no task.
            ValueError: The weighting does not go by indicators, or a metric does not fit.
        """
        for name in [*indicators, *errors, *percent]:
            if self.tasks and name not in self.tasks:
                raise KeyError(
                    f"indicators: no task is called {name!r}; {suggest(name, self.tasks)}"
                )
        self._teaching.tell(indicators, errors, percent, self._device)

    def synchronizes(self, aggregate: bool = True) -> bool:
        """Tell whether a call averages ``.grad`` over the ranks, so that the wrapper must not.

        Args:
            aggregate: Argument of the call.
        """
        takes_gradients = self.aggregator.needs_gradients or self._cut is not None
        monitors = self.monitor or self.monitor_layers
        return world_size() > 1 and (takes_gradients or (monitors and aggregate))

    def watch(self, module: nn.Module) -> None:
        """Choose the module whose output :attr:`monitor_features` is about.

        Args:
            module: Module that returns a tensor, or lists, tuples and dicts of tensors. Ignored at
                the feature level, where the representation is watched.

        Raises:
            ValueError: In the model of :meth:`protect`, each task has features of its own.
        """
        if self._teaching.model is not None and passes_by_task(self._teaching.model):
            raise ValueError(f"representation: {APART}, which are disentangled in any case")
        self._watching.watch(module)

    def watch_layers(self, conflicts: LayerConflicts) -> None:
        """Choose the counter that :attr:`monitor_layers` is about.

        Args:
            conflicts: Counter of the model's layers.

        Raises:
            ValueError: The gradients of the layers are not taken: at the feature level, with
                ``low_memory`` or ``gramian="sketch"``, or by a method that takes a step for each
                task in turn.
        """
        for key, plain in (("level", "parameter"), ("low_memory", False), ("gramian", "exact")):
            if getattr(self.options, key) != plain:
                raise ValueError(
                    f"{key}: conflicts of layers are counted in the gradients of the shared "
                    f"parameters, which {key}={getattr(self.options, key)!r} does not keep"
                )
        if self.aggregator.takes_turns:
            raise ValueError(
                f"aggregator: {type(self.aggregator).__name__} takes the gradients of the tasks at "
                "different weights, where they cannot conflict"
            )
        self._watching.layers = conflicts

    def protect(self, model: nn.Module) -> None:
        """Bring the model's buffers back when a step is skipped, as parameters are.

        A NaN in an image is in the running statistics of every batch norm once the losses are known
        to be NaN. A method that has a part of the model, such as the rotations of RotoGrad, finds
        it here.

        Args:
            model: The whole model, with or without its data-parallel wrapper.

        Raises:
            ValueError: The wrapper has ``static_graph=True``, the model is none for the method, or
                at the feature level each task has features of its own.
        """
        several = self.aggregator.needs_gradients or self._cut is not None
        if several and getattr(model, "static_graph", False):
            raise ValueError(
                "static_graph: with True, DistributedDataParallel counts on one backward pass a "
                f"step, and {type(self.aggregator).__name__} takes several; set it to False"
            )
        self._teaching.model = model = getattr(model, "module", model)
        if self._cut is not None and passes_by_task(model):
            raise ValueError(f"level: {APART}, which never conflict; use level='parameter'")
        self._guard.protect(model)
        self.aggregator.meet(model, self.tasks)

    @property
    def _device(self) -> torch.device:
        return self.params[0].device  # the model may be moved after this is built

    def _take(self, losses: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
        """Check the losses, and put those with a gradient in the order of the tasks."""
        found = scalars(losses)
        # Later on a batch may be without any task, on one rank or on all.
        first = self.last is None and world_size() == 1
        if first and not any(loss.requires_grad for loss in found.values()):
            raise ValueError(
                f"losses: none of {list(losses)} requires a gradient; is every parameter frozen?"
            )
        if self.last is None and self.aggregator.needs_gradients:
            refuse_donated_buffers(loss for loss in found.values() if loss.requires_grad)
        if self._cut is not None and not self._cut.was_called:
            raise ValueError(
                "representation: the module was not called in training mode and with gradients "
                "since the last step. Inside of reentrant activation checkpointing it cannot be"
            )
        self.tasks += [n for n, loss in found.items() if loss.requires_grad and n not in self.tasks]
        # The order is the same on every rank.
        return {n: found[n] for n in self.tasks if n in found and found[n].requires_grad}

    def _open(self) -> Window:
        """Prepare for what is aggregated next."""
        self._teaching.begin()
        self._take_in()
        self._ownership.open_window()
        if self._penalty is not None:
            self._penalty.clear()
        by_task = self.aggregator.needs_gradients or self.monitor or self.monitor_layers
        if by_task:
            refuse_hooks(self.params)
        if by_task or self._penalty is not None:
            refuse_incomparable(self.params)
        self._tell_length()
        # The plain sum may accumulate onto earlier gradients; other methods would aggregate those.
        by_rows = self.aggregator.needs_gradients and self._cut is None
        scaled = not self.aggregator.needs_gradients and self.aggregator.scale == "mean"
        return Window(self.params, self.tasks, hold=by_rows or scaled)

    def _tell_length(self) -> None:
        for method in (self.aggregator, self.weighting):
            if method is not None:
                if method.total_steps is None and self.total_steps is not None:
                    method.total_steps = math.ceil(self.total_steps / self.options.weights_every)
                method.steps_per_epoch = self.steps_per_epoch

    def _take_in(self) -> list[nn.Parameter]:
        """Take in what joined the optimizer, and return it."""
        if self._optimizer is None:
            return []
        known = set(map(id, self.params))
        joined = [p for p in _params_of(self._optimizer) if id(p) not in known]
        self.params += joined
        self._ownership.make_room()
        return joined

    @contextmanager
    def _passes(self) -> Iterator[None]:
        """Run back, in full precision, unseen by the hooks on modules; clean up after errors."""
        with ExitStack() as stack:
            # Under autocast the Gramian and the weighted sum would be taken in half precision.
            stack.enter_context(torch.autocast(self._device.type, enabled=False))
            stack.enter_context(explained())
            for features in (self._cut, self._watching.features):
                if features is not None:
                    stack.callback(features.clear)
                    stack.enter_context(features.asleep())
            try:
                yield
            except BaseException:
                if self._window is not None:
                    self._window.undo()
                self._window = None
                self.aggregator.finish(skipped=True)
                raise

    def _batch(
        self,
        raw: Mapping[str, Tensor],
        window: Window,
        scale: Tensor | None,
        aggregate: bool,
        share: float,
        again: Again | None,
    ) -> Batch:
        """Tell the other ranks of the losses, and learn what they reach."""
        graph, changed = None, False
        by_task = self.aggregator.needs_gradients or self.regularizer is not None
        if by_task and self._cut is None:
            graph = LossGraph(list(raw.values()))
            changed = self._ownership.look_at(graph, [self.tasks.index(name) for name in raw])
        report = Report(raw, self.tasks, self._device, changed, share, again)
        window.reports.append(report)
        window.factors |= self._teaching.factors(report, self.tasks)
        self._watching.monitor = self.monitor
        self._watching.monitor_features = self.monitor_features
        self._watching.monitor_layers = self.monitor_layers
        copy = None if scale is None else HostCopy(scale)
        return Batch(raw, self.tasks, window, scale, share, aggregate, report, graph, copy)

    def _descent(self, measured: Measured, window: Window, scale: Tensor | None) -> Descent | None:
        if not self.aggregator.looks_ahead:
            return None
        assert self._teaching.model is not None
        return Descent(
            self._teaching.model, self.params, self.tasks, window, measured.reports, scale
        )

    def _let_learn(self, measured: Measured, scale: Tensor | None) -> None:
        """Show the gradients of the features to the aggregator."""
        if measured.rows is None or measured.gramian is None:
            return
        assert self._window is not None
        names = self._window.totals(measured.reports)
        lengths = zip(names, measured.gramian.diagonal().sqrt().tolist(), strict=True)
        present = {name: length for name, length in lengths if length > 0.0}
        # Without the loss scale, what half precision holds would be 0 there.
        rows = {name: widened(measured.rows.matrix()[self.tasks.index(name)]) for name in present}
        if scale is not None:
            rows = {name: row / scale for name, row in rows.items()}
        if rows:
            self.aggregator.learn(rows, present, measured.features)

    def _close(
        self, window: Window, measured: Measured, choice: Choice, scale: Tensor | None
    ) -> None:
        """Finish the step: show it, learn from it, or skip it."""
        self._window = self._in_turn = None
        losses, penalty = window.totals(), None
        window.note_nonfinite(None, window.reports)
        if self._penalty is not None:
            self._penalty.add()
            penalty, finite = self._penalty.read()
            window.nonfinite |= set() if finite else {REGULARIZER}
        window.release()
        self.last = Step.of(window, measured, choice, self._watching.result(), penalty)
        self.monitor = self.monitor_features = self.monitor_layers = False
        self.aggregator.finish(skipped=bool(self.last.nonfinite))
        if self.last.nonfinite:
            self._guard.skip(self.last.nonfinite, losses, self.params, scale)
        else:
            self._teaching.learn(losses, self.tasks)
            self._guard.passed()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the method, to continue as if there had been no interruption."""
        parts = (self._ownership, self._chooser, self._teaching, self._guard)
        state: dict[str, Any] = {"tasks": list(self.tasks)}
        for part in parts:
            state |= part.state_dict()
        if (sketched := self._routes.sketched) is not None:
            state["sketch"] = sketched.sketcher.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: The state was written with another aggregator, weighting or other tasks, or
                by another version.
        """
        optional = {"weighting", "sketch"}
        expected = sorted(self.state_dict().keys() - optional)
        check_keys(type(self).__name__, dict.fromkeys(state.keys() - optional), expected)
        for key, method in (("aggregator", self.aggregator), ("weighting", self.weighting)):
            if key in state:
                check_keys(f"the {key}", state[key], ("type", "state"))
            here = None if method is None else type(method).__name__
            there = state[key]["type"] if key in state else None
            if here != there:
                raise ValueError(
                    f"{key}: the checkpoint was written with {there}, this run uses {here}"
                )
        if self.tasks and list(state["tasks"]) != self.tasks:
            raise ValueError(
                f"tasks: the checkpoint has {state['tasks']}, this run has {self.tasks}"
            )
        self._in_turn = None
        self._take_in()
        self._ownership.open_window()
        self._ownership.load_state_dict(state)  # refuses another model's state
        self.tasks[:] = state["tasks"]
        self._chooser.load_state_dict(state)
        self._teaching.load_state_dict(state)
        self._guard.load_state_dict(state)
        if (sketched := self._routes.sketched) is not None and "sketch" in state:
            sketched.sketcher.load_state_dict(state["sketch"])


def _params_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]
