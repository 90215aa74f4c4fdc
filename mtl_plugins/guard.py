"""Steps that must not be made: a loss or gradient is NaN or infinite."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl_plugins.options import OnNonfinite

logger = logging.getLogger(__name__)
REGULARIZER = "the regularizer"
"""Name of the regulariser among what is not finite."""


class Guard:
    """Skips a step, so that neither parameters nor buffers change.

    Args:
        policy: ``"skip"`` or ``"raise"``.
        max_skips: How many skipped steps in a row are an error.
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

    def passed(self) -> None:
        """Hear that a step is made."""
        self._skipped = 0
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
            nonfinite: Names of what is not finite.
            losses: The losses.
            params: The parameters that are trained.
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
        if self._buffers is not None:
            self._buffers.restore()

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps in a row were skipped."""
        return {"skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._skipped = state["skipped"]


class Buffers:
    """Copies of a model's buffers from before the first forward pass of a step.

    Args:
        model: A forward hook is put on it, without the wrapper of a data-parallel run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        # Of each: where it is, the tensor, its version when it was copied, and the copy.
        self._kept: list[tuple[dict[str, Any], str, Tensor, int, Tensor]] = []
        self._taken = False
        model.register_forward_pre_hook(self._before)

    def _before(self, model: nn.Module, inputs: Any) -> None:
        if model.training and torch.is_grad_enabled() and not self._taken:
            self._take()

    @torch.no_grad()
    def _take(self) -> None:
        """Copy what has changed since the last time."""
        self._taken = True
        known = {id(tensor): (version, copy) for _, _, tensor, version, copy in self._kept}
        self._kept = []
        for module in self._model.modules():
            for name, tensor in module._buffers.items():
                if tensor is None:
                    continue
                version, copy = known.get(id(tensor), (-1, tensor))
                if version != tensor._version:
                    # Into the same memory as the last time.
                    copy = tensor.clone() if version < 0 else copy.copy_(tensor)
                self._kept.append((module._buffers, name, tensor, tensor._version, copy))

    def forget(self) -> None:
        """Take new copies before the next forward pass."""
        self._taken = False

    @torch.no_grad()
    def restore(self) -> None:
        """Bring the buffers back."""
        if self._taken:
            for where, name, tensor, version, copy in self._kept:
                if tensor._version != version:
                    tensor.copy_(copy)
                where[name] = tensor
        self.forget()
