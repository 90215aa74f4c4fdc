"""The losses of a batch once more, after the model has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Replay:
    """Computes the last forward passes in training mode once more, after the model has changed.

    The same random numbers are drawn, such as for the sampling of proposals, so that the losses
    differ by what the step has changed and nothing else. Buffers and generators stay as they are.

    Args:
        model: Model without the wrapper of a data-parallel run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._again_now = False
        self._calls: list[_Call] = []
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def counts(self, kwargs: Mapping[str, Any]) -> bool:
        """Tell whether a call with these keyword arguments computes losses."""
        return True

    def _note(self, model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        if self._again_now or not (
            model.training and torch.is_grad_enabled() and self.counts(kwargs)
        ):
            return
        device = next(model.parameters()).device
        self._calls.append(
            _Call(
                args,
                kwargs,
                device,
                torch.get_rng_state(),
                torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
                torch.get_autocast_dtype(device.type)
                if torch.is_autocast_enabled(device.type)
                else None,
            )
        )

    @torch.no_grad()
    def outputs(self) -> list[Any]:
        """Return the present output of each call since the last request."""
        calls, self._calls = self._calls, []
        return [self._again(call) for call in calls]

    def run_again(self) -> Any:
        """Run the last call once more as it is, gradients and new random numbers included.

        Raises:
            RuntimeError: There was none, or more than one since :meth:`forget`.
        """
        call = self._only()
        cast = torch.autocast(call.device.type, call.dtype, enabled=call.dtype is not None)
        self._again_now = True
        try:
            with cast:
                return self._model(*call.args, **dict(call.kwargs))
        finally:
            self._again_now = False

    def again(self) -> Callable[[], Any]:
        """Return a function that computes the output of the last call, as at :meth:`outputs`.

        Gradients can be taken, and the function be called again and again.

        Raises:
            RuntimeError: There was no call, or more than one since :meth:`forget`.
        """
        return partial(self._again, self._only())

    def _only(self) -> _Call:
        if len(self._calls) != 1:
            raise RuntimeError(
                f"the model was called {len(self._calls)} times in this step; a method that runs "
                "it once more on the same batch needs one call of it"
            )
        return self._calls[0]

    def forget(self) -> None:
        """Drop the calls so far."""
        self._calls = []

    def _again(self, call: _Call) -> Any:
        cuda = [call.device] if call.device.type == "cuda" else []
        cast = torch.autocast(call.device.type, call.dtype, enabled=call.dtype is not None)
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        with torch.random.fork_rng(cuda), cast:
            torch.set_rng_state(call.state)
            if call.cuda_state is not None:
                torch.cuda.set_rng_state(call.cuda_state, call.device)
            self._again_now = True
            try:
                return functional_call(self._model, buffers, call.args, dict(call.kwargs))
            finally:
                self._again_now = False


@dataclass(frozen=True)
class _Call:
    args: Any
    kwargs: Mapping[str, Any]
    device: torch.device
    state: Tensor
    cuda_state: Tensor | None
    dtype: torch.dtype | None
