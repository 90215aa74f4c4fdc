"""Losses for labels that some pixels or images lack."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.utils import reduce_mean
from mmengine.dist import get_world_size
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


def share_of_images(count: int, like: Tensor) -> Tensor:
    """Return this process's number of labelled images, divided by the mean of all processes.

    A decode head takes the mean over the images of one process. Multiplied by this share, the mean
    of the processes is the mean over all images, as for dense heads, which count over all
    processes.

    Args:
        count: Number of labelled images on this process.
        like: Tensor on the device of the result.
    """
    mine = like.new_tensor(float(count), dtype=torch.float)
    return mine / reduce_mean(mine).clamp(min=1 / get_world_size())
