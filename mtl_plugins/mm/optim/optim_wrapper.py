"""MMEngine's optimizer wrapper with task gradients in place of the gradient of the summed loss."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.logging import MessageHub, print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import build_aggregator
from mtl_plugins.features import find_module
from mtl_plugins.mm.allocation import AllocationGates
from mtl_plugins.mm.optim.amp import AnyDeviceAmpOptimWrapper
from mtl_plugins.mm.optim.losses import ParsedLosses
from mtl_plugins.mm.optim.model import Replay, differentiate_twice, late_losses, unwrapped
from mtl_plugins.mm.optim.options import KEYS, OPTIONS, check_options
from mtl_plugins.precision import gradient_scale
from mtl_plugins.registry import suggest, under
from mtl_plugins.regularization import build_regularizer
from mtl_plugins.report import Again
from mtl_plugins.resume import KEY, LOSSES_KEY, Resume
from mtl_plugins.tasks import TaskGroups
from mtl_plugins.weighting import build_weighting

RESUME = Resume("resume", "load_from", "MTLOptimWrapper")


class _ToMMEngine(logging.Handler):
    """Handler that passes the core's log on to MMEngine's logger, and so to the run's log file."""

    def emit(self, record: logging.LogRecord) -> None:
        print_log(record.getMessage(), logger="current", level=record.levelno)


logging.getLogger("mtl_plugins").addHandler(_ToMMEngine())
logging.getLogger("mtl_plugins").setLevel(logging.INFO)


@OPTIM_WRAPPERS.register_module()
class MTLOptimWrapper(OptimWrapper):
    """``OptimWrapper`` that aggregates the gradients of several tasks.

    The wrapper works with every model whose ``forward(mode='loss')`` returns a dict of losses, with
    any optimizer wrapper constructor (``paramwise_cfg``, layer decay), gradient clipping and
    accumulation. The wrapper meets the model when the runner calls
    :meth:`initialize_count_status`, or at the first :meth:`optim_context`, and listens to the terms
    that ``model.parse_losses`` finds.

    Args:
        tasks: Names of the losses of each task, shell patterns allowed. None makes every loss a
            task of its own.
        aggregator: Name or ``dict(type=name, ...)``, see :mod:`mtl_plugins.aggregation`.
        weighting: Name or ``dict(type=name, ...)``, see :mod:`mtl_plugins.weighting`; or None.
        regularizer: Name or ``dict(type=name, ...)``, see :mod:`mtl_plugins.regularization`; or
            None.
        representation: Path of the module whose output the tasks share, for ``level='feature'``; by
            default that of the model's attribute ``representation``, or else the neck.
        layers: Path of the module whose gradients decide, such as ``'neck'``, for
            ``level='layers'``.
        optional_losses: Patterns of losses that come on some batches only, or late in the run, and
            that the first batch may lack; besides those in ``model.optional_losses``.
        **kwargs: Other options of :class:`~mtl_plugins.MultiTaskBackward` (``level``, ``heads``,
            ``scale``, ``sync``, ``low_memory``, ``gramian``, ``sketch_rows``, ``weights_every``,
            ``on_nonfinite``, ``max_skips``), and those of MMEngine's ``OptimWrapper``.

    Attributes:
        multitask: Object of :class:`~mtl_plugins.MultiTaskBackward`; None until the model is known.

    Examples:
        >>> # In a config:
        >>> optim_wrapper = dict(
        ...     type='MTLOptimWrapper',
        ...     optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
        ...     tasks=dict(detection=['loss_rpn_*', 'loss_cls', 'loss_bbox'], mask='loss_mask'),
        ...     aggregator=dict(type='PCGrad'))
    """

    def __init__(
        self,
        *args: Any,
        tasks: Mapping[str, str | Sequence[str]] | None = None,
        aggregator: str | Mapping[str, Any] = "Sum",
        weighting: str | Mapping[str, Any] | None = None,
        regularizer: str | Mapping[str, Any] | None = None,
        representation: str | None = None,
        layers: str | None = None,
        optional_losses: str | Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        ours = {key: kwargs.pop(key) for key in OPTIONS & kwargs.keys()}
        check_options(type(self), kwargs)
        super().__init__(*args, **kwargs)
        with under("optim_wrapper", KEYS):
            self.groups = TaskGroups(tasks, optional_losses)
            # Built here, so that a config error shows before the data is loaded.
            self._options = ours | {
                "aggregator": build_aggregator(aggregator),
                "weighting": None if weighting is None else build_weighting(weighting),
                "regularizer": None if regularizer is None else build_regularizer(regularizer),
            }
            if self.groups.names and self._options["weighting"] is not None:
                self._options["weighting"].check(self.groups.names)
            if self._options["aggregator"].takes_turns:
                self._check_turns()
        self._representation = representation
        self._layers = layers
        self.multitask: MultiTaskBackward | None = None
        self._losses: ParsedLosses | None = None
        self._scaled: tuple[Any, Any] | None = None  # result and argument of the last scale_loss()
        self._has_gradients = False  # backward() was called since the last step
        self._resumed: dict[str, Any] | None = None
        self._replay: Replay | None = None  # to run the model once more in a step
        self._gates: AllocationGates | None = None

    def _check_turns(self) -> None:
        """Refuse options with which no step can be taken for each task in turn.

        Raises:
            ValueError: Gradients are accumulated, or the tasks have no names.
        """
        name = type(self._options["aggregator"]).__name__
        if self._accumulative_counts > 1:
            raise ValueError(
                f"accumulative_counts: {name} takes a step for each task on each batch, so that "
                f"there is nothing to accumulate; expected 1, got {self._accumulative_counts}"
            )
        if not self.groups.names:
            raise ValueError(
                f"tasks: {name} takes a step for each task in turn, and needs their names, such as "
                "dict(seg='seg.*', depth='depth.*')"
            )

    def attach(self, model: nn.Module) -> None:
        """Meet the model: find the representation and listen to ``parse_losses``.

        Raises:
            ValueError: The representation is not a module of the model.
            KeyError: No task claims a loss that the model may have later.
            TypeError: The model is sharded over the ranks, or has no ``parse_losses``.
        """
        if self.multitask is not None:
            return
        if isinstance(model, FullyShardedDataParallel):
            raise TypeError(
                "model_wrapper_cfg: FSDP leaves no rank with a whole gradient to aggregate; use "
                "MMDistributedDataParallel"
            )
        whole = model
        model = unwrapped(model)
        losses = ParsedLosses.of(model)
        weighting = self._options["weighting"]
        computes_again = weighting is not None and weighting.needs_new_losses
        computes_again |= self._runs_again
        if computes_again and not losses.sums:
            self._refuse_replay()
        with under("optim_wrapper", KEYS):
            self.groups.optional = [
                *self.groups.optional,
                *getattr(model, "optional_losses", ()),
            ]
            self.groups.expect(late_losses(model))
            self.multitask = MultiTaskBackward(
                self.optimizer,
                representation=self._find_representation(model),
                layers=find_module(model, self._layers, "optim_wrapper.layers")
                if self._layers
                else None,
                tasks=self.groups.names,
                **self._options,
            )
        wrapped = under("model_wrapper_cfg", ("static_graph",))
        with under("optim_wrapper", KEYS), wrapped:
            self.multitask.protect(whole)
        self._losses = losses
        if self._resumed is not None:
            RESUME.load(self.multitask, self._resumed)
        self._gates = AllocationGates(model, self.groups)
        if self.multitask.regularizer is not None:
            differentiate_twice(model)
        if computes_again:
            self._replay = Replay(model)

    @property
    def _runs_again(self) -> bool:
        """Whether the aggregator runs the model more than once on a batch."""
        aggregator = self._options["aggregator"]
        return aggregator.takes_turns or aggregator.looks_ahead

    def _find_representation(self, model: nn.Module) -> nn.Module | None:
        path, by_features = self._representation, self._options.get("level") == "feature"
        if path is None and by_features:
            path = getattr(model, "representation", None)
            if not isinstance(path, str):  # a module of that name, which may be anything
                path = "neck" if getattr(model, "with_neck", False) else None
        if path is not None:
            return find_module(model, path, "optim_wrapper.representation")
        if by_features:
            raise ValueError(
                "optim_wrapper.representation: level='feature' needs the path of the module whose "
                f"output the tasks share; {suggest('neck', dict(model.named_children()))}"
            )
        return None

    def _refuse_replay(self) -> None:
        kind = "aggregator" if self._runs_again else "weighting"
        raise ValueError(
            f"optim_wrapper.{kind}: {type(self._options[kind]).__name__} computes the losses of a "
            "batch more than once, and what is trained is not their sum, which mmengine's "
            f"parse_losses() returns; use another {kind}"
        )

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        super().initialize_count_status(model, init_counts, max_counts)
        self.attach(model)
        assert self.multitask is not None
        each = self.multitask.options.weighs_each_call
        calls = 1 if each else self._accumulative_counts
        self.multitask.total_steps = math.ceil(max_counts / calls)

    def watch(self, model: nn.Module, path: str) -> None:
        """Choose the module that feature disentanglement is about.

        Args:
            model: Model, also in a wrapper for several processes.
            path: Path of the module in the model, such as ``'neck'``.
        """
        self.attach(model)
        assert self.multitask is not None
        module = find_module(unwrapped(model), path, "TaskInterferenceHook.representation")
        with under("TaskInterferenceHook", ("representation",)):
            self.multitask.watch(module)

    @contextmanager
    def optim_context(self, model: Any) -> Iterator[None]:
        self.attach(model)
        assert self.multitask is not None
        if self.multitask.steps_per_epoch is None:
            self.multitask.steps_per_epoch = self._steps_per_epoch()
        own = self.multitask.synchronizes(self.should_sync()) and hasattr(model, "no_sync")
        with ExitStack() as stack:
            stack.enter_context(super().optim_context(model))
            if own:
                stack.enter_context(model.no_sync())
            if self._runs_again:
                assert self._replay is not None
                self._replay.forget()
            with under("optim_wrapper", KEYS):
                in_turn = self.multitask.in_turn
            if in_turn:  # the call inside is about the first task
                assert self._gates is not None
                stack.enter_context(self._gates.only(self.multitask.tasks[0]))
            yield

    def update_params(
        self,
        loss: Tensor,
        step_kwargs: dict[str, Any] | None = None,
        zero_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Update the parameters, at once or, as the aggregator says, for each task in turn.

        In turn, the model has computed the losses of the first task alone, and is run once more for
        each of the others; their scalars join those that ``parse_losses`` returned.

        Args:
            loss: Scalar that ``parse_losses`` returned.
            step_kwargs: Arguments of the optimizer's step.
            zero_kwargs: Arguments of ``zero_grad``.
        """
        if self.multitask is None or not self.multitask.in_turn:
            super().update_params(loss, step_kwargs, zero_kwargs)
            return
        assert self._losses is not None and self._replay is not None
        replay, log, first = self._replay, self._losses.log, self.multitask.tasks[0]
        if not self._losses.is_sum(loss):
            self._refuse_replay()
        terms, untrained = self._losses.behind(loss, self.optimizer)

        def loss_of(task: str) -> Tensor | None:
            nonlocal terms
            if task != first:
                assert self._gates is not None
                with self._gates.only(task):
                    found = replay.log_of(replay.run_again())
                terms = {name: value for name, value in found.items() if "loss" in name}
                for name, value in found.items():
                    if "loss" not in name:
                        log.setdefault(name, value)
                    elif self.groups.task_of(name) == task:
                        log[name] = value.detach()
            return self.groups(terms, untrained, only=task).get(task)

        def step() -> None:
            self._has_gradients = True
            self.step(**(step_kwargs or {}))  # schedulers count the calls

        with under("optim_wrapper", KEYS):
            self.multitask.take_in_turn(loss_of, step, self.gradient_scale)
        if "loss" in log:
            log["loss"] = sum(
                log[name].detach() for name in log if "loss" in name and name != "loss"
            )
        self._inner_count += 1
        self.zero_grad(**(zero_kwargs or {}))

    def scale_loss(self, loss: Tensor) -> Tensor:
        scaled = super().scale_loss(loss)
        self._scaled = (scaled, loss)
        return scaled

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Take the task gradients of the losses that ``loss`` is made of.

        Args:
            loss: Scalar that ``parse_losses`` returned, or one made from that: the losses count in
                it as they would for ``loss.backward()``. A weight of the losses that is learned is
                trained as well.
            kwargs: Options, not supported; MMEngine passes none.

        Raises:
            RuntimeError: ``loss`` did not come from the ``parse_losses`` of the model.
            KeyError: The losses do not fit ``tasks``.
        """
        if kwargs:
            raise TypeError(f"{type(self).__name__}.backward() takes a loss alone, got {kwargs}")
        if self._losses is None or self.multitask is None:
            raise RuntimeError(
                f"{type(self).__name__} needs the single losses: use optim_context(model) before "
                "model.parse_losses(), and call update_params() with what that returned"
            )
        share = 1.0
        if self._scaled is not None and loss is self._scaled[0]:
            loss, share = self._scaled[1], float(super().scale_loss(torch.ones(())))
        self._scaled = None
        is_sum = self._losses.is_sum(loss)
        terms, untrained = self._losses.behind(loss, self.optimizer)
        if self._replay is not None and not is_sum:
            self._refuse_replay()
        with under("optim_wrapper", KEYS):
            self.multitask(
                self.groups(terms, untrained),
                scale=self.gradient_scale(),
                aggregate=self.should_sync(),
                share=share,
                again=self._again(untrained),
            )
        self._inner_count += 1
        self._has_gradients = True

    def _again(self, untrained: set[str]) -> Again | None:
        """Return the function that computes the losses of the last call once more, if needed."""
        if not self._options["aggregator"].looks_ahead:
            return None
        assert self._replay is not None
        replay, again = self._replay, self._replay.again()
        return lambda: self.groups(replay.terms(again()), untrained)

    def step(self, **kwargs: Any) -> None:
        """Make the step, then give the new losses to a weighting that asks for them.

        Raises:
            RuntimeError: There was no :meth:`backward` since the last step.
        """
        if not self._has_gradients:
            raise RuntimeError(
                f"{type(self).__name__}.step(): there was no backward() of this wrapper since the "
                "last step, and loss.backward() takes no gradients of tasks; call "
                "update_params(loss), or backward(loss) and step()"
            )
        self._has_gradients = False
        super().step(**kwargs)
        weighting = self._options["weighting"]
        if weighting is not None and weighting.needs_new_losses:
            assert self._replay is not None and self.multitask is not None
            tasks: dict[str, Tensor] = {}
            calls = self._replay.losses()
            for terms in calls:  # all calls of a step count alike
                for task, loss in self.groups(terms).items():
                    tasks[task] = tasks.get(task, 0.0) + loss / len(calls)
            self.multitask.after_step(tasks)

    def _steps_per_epoch(self) -> int | None:
        """Return the optimizer steps in an epoch; None in a run that counts iterations."""
        hub = MessageHub.get_current_instance()
        epochs, iters = hub.get_info("max_epochs", 1), hub.get_info("max_iters", 0)
        return iters // epochs // self._accumulative_counts if epochs > 1 else None

    def gradient_scale(self) -> Tensor | None:
        """Return the factor on the gradients against underflow; None without one."""
        return None

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.multitask is not None:
            state[KEY] = self.multitask.state_dict()
            state[LOSSES_KEY] = self.groups.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore optimizer and method.

        Raises:
            ValueError: The checkpoint was written by another method, or without one.
        """
        losses = state_dict.pop(LOSSES_KEY, None)
        self._resumed = RESUME.take(state_dict)
        super().load_state_dict(state_dict)
        if losses is not None:
            self.groups.load_state_dict(losses)
        if self.multitask is not None:
            RESUME.load(self.multitask, self._resumed)


@OPTIM_WRAPPERS.register_module()
class AmpMTLOptimWrapper(MTLOptimWrapper, AnyDeviceAmpOptimWrapper):
    """:class:`MTLOptimWrapper` in mixed precision, with the arguments of ``AmpOptimWrapper`` too.

    The aggregator sees the gradients unscaled. In ``.grad`` the gradients stay scaled, as the loss
    scaler expects them: a gradient that overflowed skips the step and lowers the scale as usual,
    and the log names its task. On a CPU, training is in bfloat16, without a scaler.
    """

    def gradient_scale(self) -> Tensor | None:
        device = self.optimizer.param_groups[0]["params"][0].device
        return gradient_scale(self.loss_scaler, device)
