"""What the optimizer wrapper asks of a model besides its losses."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtl_plugins.ops.roi_align import roi_align
from mtl_plugins.registry import suggest


def find_module(model: nn.Module, path: str, key: str) -> nn.Module:
    """The module at ``path``.

    Args:
        key: Where the config has the path, for the error message.

    Raises:
        ValueError: There is none.
    """
    modules = dict(model.named_modules())
    if not path or path not in modules:
        raise ValueError(
            f"{key}: the model has no module {path!r}; "
            + suggest(path, [name for name in modules if name and name.count(".") < 2])
        )
    return modules[path]


def differentiate_twice(model: nn.Module) -> None:
    """Exchanges mmcv's RoIAlign, which has one derivative, for ours, which has all of them."""
    if "mmcv.ops" not in sys.modules:
        return
    from mmcv.ops import RoIAlign

    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, RoIAlign) and child.pool_mode == "avg":
                setattr(parent, name, TwiceDifferentiableRoIAlign(child))


class TwiceDifferentiableRoIAlign(nn.Module):
    """mmcv's RoIAlign with gradients of every order.

    Args:
        layer: An ``mmcv.ops.RoIAlign`` with average pooling, whose options it takes over.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.output_size = layer.output_size
        self.spatial_scale = layer.spatial_scale
        self.sampling_ratio = layer.sampling_ratio
        self.aligned = layer.aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return roi_align(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )


class Replay:
    """Computes the losses of the last batches once more, after the model has changed.

    The same random numbers are drawn, such as for the sampling of proposals, so that the losses
    differ by what the step has changed. Nothing else does: buffers and generators stay as they are.

    Args:
        model: Its ``forward(mode='loss')`` returns the losses.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._calls: list[_Call] = []
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        if kwargs.get("mode") != "loss" or not (model.training and torch.is_grad_enabled()):
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
    def losses(self) -> list[dict[str, Tensor]]:
        """The loss terms of each call since this was asked last."""
        calls, self._calls = self._calls, []
        return [self._again(call) for call in calls]

    def _again(self, call: _Call) -> dict[str, Tensor]:
        cuda = [call.device] if call.device.type == "cuda" else []
        cast = torch.autocast(call.device.type, call.dtype, enabled=call.dtype is not None)
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        with torch.random.fork_rng(cuda), cast:
            torch.set_rng_state(call.state)
            if call.cuda_state is not None:
                torch.cuda.set_rng_state(call.cuda_state, call.device)
            losses = functional_call(self._model, buffers, call.args, dict(call.kwargs))
            _, terms = type(self._model).parse_losses(self._model, losses)
        return {name: term for name, term in terms.items() if "loss" in name and name in losses}


@dataclass(frozen=True)
class _Call:
    args: Any
    kwargs: Mapping[str, Any]
    device: torch.device
    state: Tensor
    cuda_state: Tensor | None
    dtype: torch.dtype | None
