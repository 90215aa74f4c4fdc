"""Focal losses of Lin et al. (2017) and their closed-form gradients, unreduced.

Common arguments: ``target`` (N,) holds class indices of type long. ``weight`` (C,) scales a row
by the weight of its target class; an empty tensor means none. ``gamma`` focuses on hard rows and
``alpha`` balances. A target outside [0, C), such as mmcv's background C, belongs to no class and
has weight 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def sigmoid_loss(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    """Return the binary focal loss per class (N, C), from logits (N, C).

    The loss is computed from the logits, so that saturated rows keep their exact loss where mmcv's
    kernel, which takes logarithms of probabilities, clamps the loss.
    """
    _, margin, scale = _margins(logits, target, weight, alpha)
    return -scale * torch.sigmoid(-margin) ** gamma * logsigmoid(margin)


def sigmoid_grad(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    """Return the derivative (N, C) of :func:`sigmoid_loss` in the logits."""
    is_class, margin, scale = _margins(logits, target, weight, alpha)
    miss = torch.sigmoid(-margin)
    slope = scale * miss**gamma * (gamma * (1 - miss) * logsigmoid(margin) - miss)
    return torch.where(is_class, slope, -slope)


def softmax_loss(
    prob: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    """Return the focal loss per row (N,), from softmax probabilities (N, C); 0 without a class."""
    hit, scale = _hits(prob, target, weight, alpha)
    return -scale * (1 - hit) ** gamma * hit.log()


def softmax_grad(
    prob: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    """Return the derivative (N, C) of :func:`softmax_loss` in the logits of ``prob``."""
    hit, scale = _hits(prob, target, weight, alpha)
    # Where the hit is certain, 0 ** (gamma - 1) would be infinite for gamma < 1.
    miss = (1 - hit).clamp_min(torch.finfo(prob.dtype).tiny)
    slope = scale * (gamma * miss ** (gamma - 1) * hit * hit.log() - miss**gamma)
    return slope[:, None] * (_is_class(prob, target).to(prob.dtype) - prob)


def _margins(
    logits: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return whether a column is the target, the logit for that truth and the loss scale: (N, C).

    The two branches of the binary loss are one function of the margin.
    """
    is_class = _is_class(logits, target)
    scale = torch.full_like(logits, 1 - alpha).masked_fill(is_class, alpha)
    scale = scale * _of_target(weight, target)[:, None] if weight.numel() else scale
    return is_class, torch.where(is_class, logits, -logits), scale


def _hits(prob: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return the probability of the target class, kept off zero, and the loss scale: (N,)."""
    has_class = _is_class(prob, target)
    hit = torch.where(has_class, prob, 0).sum(1)
    scale = alpha * has_class.any(1).to(prob.dtype)
    scale = scale * _of_target(weight, target) if weight.numel() else scale
    return hit.clamp_min(torch.finfo(prob.dtype).tiny), scale


def _is_class(rows: Tensor, target: Tensor) -> Tensor:
    return target[:, None] == torch.arange(rows.shape[1], device=rows.device)


def _of_target(weight: Tensor, target: Tensor) -> Tensor:
    inside = (target >= 0) & (target < len(weight))
    return torch.where(inside, weight[target.clamp(0, len(weight) - 1)], 1.0)
