"""Parts of a model that the optimizer wrapper needs besides the losses."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mtl_plugins import replay
from mtl_plugins.ops.roi_align import exchange_roi_aligns


def differentiate_twice(model: nn.Module) -> None:
    """Exchange mmcv's RoIAlign, which has one derivative, for ours, which has all of them."""
    if "mmcv.ops" in sys.modules:
        from mmcv.ops import RoIAlign

        averages = (m for m in model.modules() if isinstance(m, RoIAlign) and m.pool_mode == "avg")
        exchange_roi_aligns(model, averages)


def late_losses(model: nn.Module) -> list[str]:
    """Return the names of losses that a model has and does not compute yet.

    A module with ``loss_x`` and a switch ``use_x`` that is off has such a loss; in YOLOX's
    head, a hook turns on ``loss_l1`` for the last epochs.
    """
    return [
        f"loss_{flag.removeprefix('use_')}"
        for module in model.modules()
        for flag, is_on in vars(module).items()
        if flag.startswith("use_") and is_on is False
        if isinstance(getattr(module, f"loss_{flag.removeprefix('use_')}", None), nn.Module)
    ]


class Replay(replay.Replay):
    """Replay of a model whose ``forward(mode='loss')`` returns the losses."""

    def counts(self, kwargs: Mapping[str, Any]) -> bool:
        return kwargs.get("mode") == "loss"

    def losses(self) -> list[dict[str, Tensor]]:
        """Return the loss terms, as of now, of each call of the model since the last query."""
        return [self.terms(losses) for losses in self.outputs()]

    def terms(self, losses: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the loss terms of what the model returned."""
        return {name: term for name, term in self.log_of(losses).items() if "loss" in name}

    def log_of(self, losses: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the scalars to log of what the model returned, without their sum."""
        # The method of the class: the optimizer wrapper listens to the instance's.
        _, log = type(self._model).parse_losses(self._model, losses)
        return {name: value for name, value in log.items() if name in losses}
