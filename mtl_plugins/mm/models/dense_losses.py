"""Losses of dense prediction, over the pixels that have a label."""

from __future__ import annotations

from typing import Literal

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_plugins.mm.structures import IGNORED
from mtl_plugins.registry import suggest

EPS = 1e-6
"""Least length of a predicted normal; a shorter one is not scaled to unit length."""


@MODELS.register_module()
class DepthL1Loss(nn.Module):
    """Mean absolute difference over the pixels with a known depth, those above 0.

    Args:
        loss_weight: Factor of the loss.
        loss_name: Name of the loss in the model's losses.
    """

    def __init__(self, loss_weight: float = 1.0, loss_name: str = "loss_depth") -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss of predictions ``[N, 1, H, W]`` for depths ``[N, 1, H, W]``."""
        valid = target > 0
        errors = (pred.float()[valid] - target[valid]).abs()
        return self.loss_weight * errors.sum() / valid.sum().clamp(min=1)


@MODELS.register_module()
class NormalLoss(nn.Module):
    """Difference of directions over the pixels with a known normal, those that are not 0.

    Args:
        mode: ``"cosine"``, the mean of 1 minus the cosine of the angle; or ``"l1"``, the mean
            absolute difference of the unit vectors' elements.
        loss_weight: Factor of the loss.
        loss_name: Name of the loss in the model's losses.

    Raises:
        ValueError: Unknown mode.
    """

    def __init__(
        self,
        mode: Literal["cosine", "l1"] = "cosine",
        loss_weight: float = 1.0,
        loss_name: str = "loss_normals",
    ) -> None:
        super().__init__()
        if mode not in ("cosine", "l1"):
            raise ValueError(f"loss.mode: there is no {mode!r}; {suggest(mode, ('cosine', 'l1'))}")
        self.mode = mode
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss of vectors ``[N, 3, H, W]`` of any length for ``[N, 3, H, W]``."""
        valid = (target != 0).any(1)
        pred = F.normalize(pred.float().movedim(1, -1)[valid], dim=-1, eps=EPS)
        target = F.normalize(target.movedim(1, -1)[valid], dim=-1)
        errors = 1 - (pred * target).sum(-1) if self.mode == "cosine" else (pred - target).abs()
        count = valid.sum() * (1 if self.mode == "cosine" else 3)
        return self.loss_weight * errors.sum() / count.clamp(min=1)


@MODELS.register_module()
class BalancedBCELoss(nn.Module):
    """Binary cross entropy with a weight ``w`` of positive and ``1 - w`` of negative pixels.

    Args:
        pos_weight: ``w``, from 0 to 1; ``"batch"`` for the share of negative pixels in each batch.
        loss_weight: Factor of the loss.
        loss_name: Name of the loss in the model's losses.

    Raises:
        ValueError: ``pos_weight`` is another text, or not from 0 to 1.
    """

    def __init__(
        self,
        pos_weight: float | Literal["batch"] = 0.95,
        loss_weight: float = 1.0,
        loss_name: str = "loss_bce",
    ) -> None:
        super().__init__()
        if pos_weight != "batch" and (isinstance(pos_weight, str) or not 0 <= pos_weight <= 1):
            raise ValueError(
                f"loss.pos_weight: {pos_weight!r} is neither from 0 to 1 nor 'batch', the share of "
                "negative pixels in each batch"
            )
        self.pos_weight = pos_weight
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(self, pred: Tensor, target: Tensor, ignore_index: int = IGNORED) -> Tensor:
        """Return the mean loss over the pixels that are not ignored.

        Args:
            pred: Logits, ``[N, 1, H, W]``.
            target: 1, 0 or ``ignore_index``, with as many elements.
            ignore_index: Value of a pixel without a label.
        """
        target = target.reshape(pred.shape)
        valid = target != ignore_index
        pred, positive = pred.float()[valid], target[valid] > 0
        count = valid.sum().clamp(min=1)
        weight = torch.as_tensor(
            (~positive).sum() / count if self.pos_weight == "batch" else self.pos_weight,
            device=pred.device,
        )
        weights = torch.where(positive, weight, 1 - weight)
        losses = F.binary_cross_entropy_with_logits(pred, positive.to(pred), reduction="none")
        return self.loss_weight * (weights * losses).sum() / count
