"""Losses for labels with holes."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from mmseg.models.losses import DiceLoss
from torch import Tensor


@MODELS.register_module()
class PartialDiceLoss(DiceLoss):
    """Dice loss of MMSegmentation on softmax probabilities, over the labelled pixels alone.

    In MMSegmentation's loss, a pixel without a label asks for a probability of 0 in every class.
    A teacher's labels have many such pixels, where the teacher is not confident.

    Args:
        **kwargs: Arguments of ``mmseg.DiceLoss``, such as ``loss_weight``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(use_sigmoid=False, activate=False, **kwargs)

    def forward(
        self, pred: Tensor, target: Tensor, ignore_index: int = 255, **kwargs: Any
    ) -> Tensor:
        """Return the loss of logits ``[N, C, H, W]`` and labels ``[N, H, W]``."""
        labelled = (target != ignore_index).unsqueeze(1)
        return super().forward(pred.softmax(1) * labelled, target, **kwargs)
