"""Detectron2's trainers with task gradients in place of the gradient of the summed loss."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.layers import ROIAlign
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtl_plugins import MultiTaskBackward
from mtl_plugins.ops.roi_align import exchange_roi_aligns
from mtl_plugins.replay import Replay
from mtl_plugins.tasks import TaskGroups


class MTLSimpleTrainer(SimpleTrainer):
    """A ``SimpleTrainer`` that aggregates the gradients of several tasks.

    It works with every model that returns a dict of losses, and with any optimizer, such as those
    of ``build_optimizer`` that clip gradients.

    Args:
        model: In several processes, in its DDP wrapper.
        data_loader: As for ``SimpleTrainer``.
        optimizer: Likewise.
        multitask: Takes the place of ``losses.backward()``.
        groups: Which losses make which task; by default, every loss is a task.
        **kwargs: Other arguments of ``SimpleTrainer``.

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
        **kwargs: Any,
    ) -> None:
        super().__init__(model, data_loader, optimizer, **kwargs)
        self.multitask = multitask
        self.groups = groups or TaskGroups(None)
        bare = model.module if isinstance(model, DistributedDataParallel) else model
        if multitask.regularizer is not None:
            exchange_roi_aligns(bare, (m for m in bare.modules() if isinstance(m, ROIAlign)))
        # For a weighting that wants the losses once more.
        again = multitask.weighting is not None and multitask.weighting.needs_new_losses
        self._replay = Replay(bare) if again else None

    def run_step(self) -> None:
        """As in ``SimpleTrainer``, with the step in the middle exchanged.

        Raises:
            KeyError: The losses do not fit the tasks.
        """
        assert self.model.training, f"[{type(self).__name__}] model was changed to eval mode!"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        wrapped = isinstance(self.model, DistributedDataParallel)
        own = wrapped and self.multitask.synchronizes()
        with self.model.no_sync() if own else nullcontext():
            with self.autocast():
                terms = _terms(self.model(data))
            self.optimizer.zero_grad()
            self.multitask(self.groups(terms), scale=self.gradient_scale())
        if hasattr(self, "after_backward"):  # since version 0.6
            self.after_backward()
        assert self.multitask.last is not None
        if not self.multitask.last.nonfinite:  # on which it would raise an error
            self._write_metrics(terms, data_time)
        self.step_optimizer()
        if self._replay is not None:
            with EventStorage():  # the model logs nothing twice
                (terms,) = map(_terms, self._replay.outputs())
            self.multitask.after_step(self.groups(terms))

    def autocast(self) -> AbstractContextManager[None]:
        """In which the model is called."""
        return nullcontext()

    def gradient_scale(self) -> Tensor | None:
        """What the gradients are multiplied by against underflow, if they are."""
        return None

    def step_optimizer(self) -> None:
        """Makes the step."""
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"mtl": self.multitask.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores optimizer and method.

        Raises:
            ValueError: The checkpoint was written by another method, or without one.
        """
        if "mtl" not in state_dict:
            raise ValueError(
                "--resume: the checkpoint was not written by one of mtl_plugins' trainers. To "
                "start from its weights, set MODEL.WEIGHTS and leave --resume off"
            )
        super().load_state_dict(state_dict)
        self.multitask.load_state_dict(state_dict["mtl"])


class MTLAMPTrainer(MTLSimpleTrainer, AMPTrainer):
    """:class:`MTLSimpleTrainer` in mixed precision, with the arguments of ``AMPTrainer`` too.

    The aggregator sees the gradients unscaled. They stay scaled in ``.grad``, where the loss scaler
    expects them: a gradient that overflowed skips the step and lowers the scale as usual, and the
    log names its task. On a CPU it trains in bfloat16, without a scaler.
    """

    def __init__(
        self, model: nn.Module, *args: Any, grad_scaler: Any = None, **kwargs: Any
    ) -> None:
        self._device = next(model.parameters()).device
        on_cpu = self._device.type == "cpu"
        if grad_scaler is None:
            grad_scaler = torch.amp.GradScaler(self._device.type, enabled=not on_cpu)
        super().__init__(model, *args, grad_scaler=grad_scaler, **kwargs)
        self.precision = torch.bfloat16 if on_cpu else getattr(self, "precision", torch.float16)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self._device.type, self.precision)

    def gradient_scale(self) -> Tensor | None:
        if not self.grad_scaler.is_enabled():
            return None
        # scale() and not get_scale(): the scaler makes its state when it first scales something,
        # and the device need not be waited for.
        return self.grad_scaler.scale(torch.ones((), device=self._device))

    def step_optimizer(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


def _terms(losses: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    return {"total_loss": losses} if isinstance(losses, Tensor) else losses
