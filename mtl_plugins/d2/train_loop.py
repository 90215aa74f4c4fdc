"""Detectron2's trainers with task gradients in place of the gradient of the summed loss."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.layers import ROIAlign
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtl_plugins import MultiTaskBackward
from mtl_plugins.d2.allocation import AllocationGates
from mtl_plugins.ops.roi_align import exchange_roi_aligns
from mtl_plugins.precision import cpu_precision, gradient_scale, scaler_for
from mtl_plugins.replay import Replay
from mtl_plugins.report import Again
from mtl_plugins.resume import KEY, LOSSES_KEY, Resume
from mtl_plugins.tasks import TaskGroups

RESUME = Resume("--resume", "MODEL.WEIGHTS", "one of mtl_plugins' trainers")


class MTLSimpleTrainer(SimpleTrainer):
    """``SimpleTrainer`` that aggregates the gradients of several tasks.

    Any model works that returns a dict of losses, and any optimizer, such as those of
    ``build_optimizer`` that clip gradients. A model may name losses that it has on some batches
    only in an attribute ``optional_losses``.

    Args:
        model: Model; in several processes, in its DDP wrapper.
        data_loader: Batches, as for ``SimpleTrainer``.
        optimizer: Optimizer, which is not called after a step that ``multitask`` skips.
        multitask: Object that takes the place of ``losses.backward()``.
        groups: Losses of each task; by default, every loss is a task.
        gates: Gates of the model, if it has some already.
        zero_grad_before_forward: Whether gradients are zeroed before the forward pass.
        **kwargs: Other arguments that the ``SimpleTrainer`` of this version of Detectron2 has.

    Examples:
        >>> multitask = MultiTaskBackward(model.parameters(), aggregator="PCGrad")
        >>> trainer = MTLSimpleTrainer(model, data_loader, optimizer, multitask)
        >>> trainer.train(0, max_iter)
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        multitask: MultiTaskBackward,
        groups: TaskGroups | None = None,
        gates: AllocationGates | None = None,
        zero_grad_before_forward: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, data_loader, optimizer, **kwargs)
        self.zero_grad_before_forward = zero_grad_before_forward
        # AMPTrainer takes this option and forgets it; version 0.6 does not take it.
        self.async_write_metrics = kwargs.get("async_write_metrics", False)
        multitask.protect(model)
        self.multitask = multitask
        self.groups = groups or TaskGroups(None)
        bare = model.module if isinstance(model, DistributedDataParallel) else model
        self.groups.optional = [*self.groups.optional, *getattr(bare, "optional_losses", ())]
        if multitask.regularizer is not None:
            exchange_roi_aligns(bare, (m for m in bare.modules() if isinstance(m, ROIAlign)))
        self._bare, self._gates = bare, gates
        if multitask.aggregator.takes_turns and gates is None:
            self._gates = AllocationGates(bare, self.groups)
        self._learns_after = multitask.weighting is not None and (
            multitask.weighting.needs_new_losses
        )
        again = self._learns_after or multitask.aggregator.looks_ahead
        self._replay = Replay(bare) if again else None

    def run_step(self) -> None:
        """Run an iteration as ``SimpleTrainer`` does, with the backward pass exchanged.

        Raises:
            KeyError: The losses do not fit the tasks.
        """
        assert self.model.training, f"[{type(self).__name__}] model was changed to eval mode!"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        if self.multitask.in_turn:
            self._run_in_turn(data, data_time)
            return

        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        wrapped = isinstance(self.model, DistributedDataParallel)
        own = wrapped and self.multitask.synchronizes()
        with self.model.no_sync() if own else nullcontext():
            with self.autocast():
                terms = _terms(self.model(data))
            if not self.zero_grad_before_forward:
                self.optimizer.zero_grad()
            scale = self.gradient_scale()
            self.multitask(self.groups(terms), scale=scale, again=self._again())
        self.log_scale()
        if hasattr(self, "after_backward"):  # since version 0.6
            self.after_backward()
        assert self.multitask.last is not None
        skipped = bool(self.multitask.last.nonfinite)
        if not skipped:  # Detectron2 would raise an error on such a loss
            self._record(terms, data_time)
        if scale is not None or not skipped:  # a loss scaler skips the step itself
            self.step_optimizer()
        if self._learns_after:
            assert self._replay is not None
            with EventStorage():  # the model logs nothing twice
                (terms,) = map(_terms, self._replay.outputs())
            self.multitask.after_step(self.groups(terms))

    def _again(self) -> Again | None:
        """Return the function that computes the losses once more, for a method that looks ahead."""
        if not self.multitask.aggregator.looks_ahead:
            return None
        assert self._replay is not None
        output = self._replay.again()
        self._replay.forget()

        def again() -> Mapping[str, Tensor]:
            with EventStorage():  # the model logs nothing twice
                return self.groups(_terms(output()))

        return again

    def _run_in_turn(self, data: Any, data_time: float) -> None:
        """Take a step for each task, with a forward pass of its own at the weights moved so far."""
        terms: dict[str, Tensor] = {}

        def loss_of(task: str) -> Tensor | None:
            assert self._gates is not None
            with self._gates.only(task), self.autocast():
                found = _terms(self._bare(data))
            terms.update(
                {n: t.detach() for n, t in found.items() if self.groups.task_of(n) == task}
            )
            return self.groups(found, only=task).get(task)

        def step() -> None:
            if hasattr(self, "after_backward"):  # since version 0.6
                self.after_backward()
            self.step_optimizer()

        self.multitask.take_in_turn(loss_of, step, self.gradient_scale)
        self.log_scale()
        assert self.multitask.last is not None
        if not self.multitask.last.nonfinite:
            self._record(terms, data_time)

    def _record(self, terms: dict[str, Tensor], data_time: float) -> None:
        """Write the losses, in a thread of Detectron2's if ``async_write_metrics`` is set."""
        if self.async_write_metrics:
            write = self._write_metrics
            self.concurrent_executor.submit(write, terms, data_time, iter=self.iter)
        else:
            self._write_metrics(terms, data_time)

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the model is called."""
        return nullcontext()

    def gradient_scale(self) -> Tensor | None:
        """Return the factor of the gradients against underflow, a scalar; None without one."""
        return None

    def log_scale(self) -> None:
        """Write the loss scale, if there is one and the trainer is to log it."""

    def step_optimizer(self) -> None:
        """Make the step of the optimizer."""
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        ours = {KEY: self.multitask.state_dict(), LOSSES_KEY: self.groups.state_dict()}
        return super().state_dict() | ours

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore optimizer and method.

        Raises:
            ValueError: The checkpoint was written by another method, or without one.
        """
        mine = RESUME.take(state_dict)
        super().load_state_dict(state_dict)
        RESUME.load(self.multitask, mine)
        if LOSSES_KEY in state_dict:
            self.groups.load_state_dict(state_dict[LOSSES_KEY])


class MTLAMPTrainer(MTLSimpleTrainer, AMPTrainer):
    """:class:`MTLSimpleTrainer` in mixed precision, with the arguments of ``AMPTrainer`` too.

    The aggregator sees the gradients unscaled; in ``.grad`` they stay scaled, as the loss scaler
    expects them: a gradient that overflowed skips the step and lowers the scale as usual, and the
    log names its task. On a CPU the model trains in bfloat16, without a scaler.
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype | None = None,
        log_grad_scaler: bool = False,
        **kwargs: Any,
    ) -> None:
        self._device = next(model.parameters()).device
        super().__init__(
            model, *args, grad_scaler=grad_scaler or scaler_for(self._device), **kwargs
        )
        on_cpu = self._device.type == "cpu"
        self.precision = (
            cpu_precision(precision, "precision") if on_cpu else precision or torch.float16
        )
        self.log_grad_scaler = log_grad_scaler

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self._device.type, self.precision)

    def gradient_scale(self) -> Tensor | None:
        return gradient_scale(self.grad_scaler, self._device)

    def log_scale(self) -> None:
        if self.log_grad_scaler:  # under Detectron2's own name
            scale = self.grad_scaler.get_scale()
            get_event_storage().put_scalar("[metric]grad_scaler", scale)

    def step_optimizer(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


def _terms(losses: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    return {"total_loss": losses} if isinstance(losses, Tensor) else losses
