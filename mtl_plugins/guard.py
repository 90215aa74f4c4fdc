"""Guard against steps with a loss or gradient that is NaN or infinite."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl_plugins.options import OnNonfinite
from mtl_plugins.window import REGULARIZER

logger = logging.getLogger(__name__)


class Guard:
    """Skips a step, so that neither parameters nor buffers change.

    Args:
        policy: Reaction to such a step, ``"skip"`` or ``"raise"``.
        max_skips: Number of skipped steps in a row that is an error.
    """

    def __init__(self, policy: OnNonfinite, max_skips: int) -> None:
        self._policy = policy
        self._max_skips = max_skips
        self._skipped = 0  # in a row
        self._buffers: Buffers | None = None

    def protect(self, model: nn.Module) -> None:
        """Bring the buffers of a model back when a step is skipped."""
        if self._policy == "skip" and self._buffers is None:
            self._buffers = Buffers(model)

    def begin(self) -> None:
        """Note that a part of a step begins, if none has."""
        if self._buffers is not None:
            self._buffers.take()

    def passed(self) -> None:
        """Note that a step is made."""
        self._skipped = 0
        self.keep()

    def keep(self) -> None:
        """Note that a part of a step is made: what comes after brings the buffers back to here."""
        if self._buffers is not None:
            self._buffers.forget()

    def skip(
        self,
        nonfinite: Sequence[str],
        losses: Mapping[str, float],
        params: Sequence[nn.Parameter],
        scale: Tensor | None,
    ) -> None:
        """Leave gradients from which the optimizer, or the loss scaler, makes no step.

        Args:
            nonfinite: Names of the tasks, or of the regulariser, that are not finite.
            losses: Loss of each task.
            params: Parameters that are trained.
            scale: Factor of a loss scaler.

        Raises:
            FloatingPointError: The policy is ``"raise"``, or too many steps in a row were skipped.
        """
        which = ", ".join(
            f"the loss of task {name!r} is {losses[name]}"
            if not math.isfinite(losses.get(name, 0.0))
            else f"the gradient of {name} is not finite"
            if name == REGULARIZER
            else f"the gradient of task {name!r} is not finite"
            for name in nonfinite
        )
        self._skipped += 1
        if self._policy == "raise":
            raise FloatingPointError(f"{which}. on_nonfinite='skip' would skip the step")
        if self._skipped >= self._max_skips:
            raise FloatingPointError(
                f"{which}, and {self._skipped} steps in a row had to be skipped (max_skips)"
            )
        logger.warning(
            "step skipped: %s; %d in a row, %d are an error", which, self._skipped, self._max_skips
        )
        for p in params:
            p.grad = None if scale is None else torch.full_like(p, math.nan)
        if self._buffers is not None and not self._buffers.restore():
            logger.warning(
                "the model given to protect() was not called itself in the first step, so that its "
                "buffers, such as the running statistics of batch norms, stay as they are"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps skipped in a row."""
        return {"skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._skipped = state["skipped"]


class Buffers:
    """Copies of a model's buffers from before the first forward pass of a step.

    If parts of the model are called, and never the model itself, the copies are from the end of the
    last step.

    Args:
        model: Model without the wrapper of a data-parallel run; gets a forward hook.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._where: list[tuple[dict[str, Any], str]] = []  # each buffer is registered here
        self._tensors: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._taken = False
        self._called = False
        model.register_forward_pre_hook(self._before)

    def _before(self, model: nn.Module, inputs: Any) -> None:
        if model.training and torch.is_grad_enabled():
            self._called = True
            self.take()

    @torch.no_grad()
    def take(self) -> None:
        """Take copies, if there are none of this step."""
        if self._taken:
            return
        self._taken = True
        self._where = [
            (module._buffers, name)
            for module in self._model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        tensors = [where[name] for where, name in self._where]
        # Batch norm changes its statistics without telling autograd: all are copied, every step.
        alike = bool(tensors) and list(map(_like, tensors)) == list(map(_like, self._copies))
        if alike:
            torch._foreach_copy_(self._copies, tensors)
        else:
            self._copies = [t.clone() for t in tensors]
        self._tensors = tensors

    def forget(self) -> None:
        """Take new copies before the next forward pass."""
        self._taken = False
        if not self._called:  # nothing will tell of that pass
            self.take()

    @torch.no_grad()
    def restore(self) -> bool:
        """Bring the buffers back; return whether that was possible."""
        taken = self._taken
        if taken and self._copies:
            torch._foreach_copy_(self._tensors, self._copies)
            for (where, name), tensor in zip(self._where, self._tensors, strict=True):
                where[name] = tensor
        self.forget()
        return taken


def _like(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device
