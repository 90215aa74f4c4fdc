"""Ignored boxes, such as crowds, that a dense head does not train as background."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor

PASSING_OVER = ("FCOSHead", "NASFCOSHead", "RetinaHead", "RetinaSepBNHead", "ATSSHead", "GFLHead")
"""Heads whose loss of the background can leave out ignored boxes."""

SURE_OF_BACKGROUND = -20.0
"""Logit whose loss is 0 on the background."""


def pass_over(
    head: Any,
    scores: Sequence[Tensor],
    labels: Sequence[InstanceData],
    crowds: Sequence[InstanceData],
) -> Sequence[Tensor]:
    """Return scores whose loss and gradient are 0 where the background is a crowd.

    MMDetection's point heads do not look at ignored boxes, and only one of the assigners for
    anchors does, if configured so.

    Args:
        head: Dense head that gave the scores.
        scores: Logits of each level, ``[N, A * C, H_l, W_l]`` with ``A`` priors at a place.
        labels: Objects of the ``N`` images.
        crowds: Ignored boxes of the ``N`` images.
    """
    family = next(c for c in type(head).__mro__ if c.__module__.startswith("mmdet."))
    if family.__name__ not in PASSING_OVER or not head.use_sigmoid_cls:
        warnings.warn(
            f"model.bbox_head: {type(head).__name__} may train ignored boxes, such as crowds, as "
            f"background; these with sigmoid scores do not: {', '.join(PASSING_OVER)}",
            stacklevel=2,
        )
        return scores
    sizes = [level.shape[-2:] for level in scores]
    priors = torch.cat(head.prior_generator.grid_priors(sizes, device=scores[0].device))
    least = getattr(getattr(head, "assigner", None), "pos_iou_thr", 1.0)
    hidden = torch.stack(
        [
            _hidden(priors, objects.bboxes, crowd.bboxes, least)
            for objects, crowd in zip(labels, crowds, strict=True)
        ]
    )
    passed = []
    each = len(priors) // sum(height * width for height, width in sizes)
    for level, (height, width) in zip(scores, sizes, strict=True):
        here, hidden = hidden.tensor_split([each * height * width], 1)
        here = here.view(len(level), height, width, each).permute(0, 3, 1, 2)
        here = here.repeat_interleave(level.shape[1] // each, 1)
        passed.append(level.masked_fill(here, SURE_OF_BACKGROUND))
    return passed


def _hidden(priors: Tensor, objects: Tensor, crowds: Tensor, least: float) -> Tensor:
    """Mark the priors that lie in a crowd and cannot be assigned to an object.

    Args:
        priors: Points ``[n, 2]`` or anchors ``[n, 4]``.
        objects: Labelled boxes, ``[m, 4]``.
        crowds: Ignored boxes, ``[k, 4]``.
        least: Least IoU of an anchor that is assigned, wherever the centre is.
    """
    centres = priors if priors.shape[1] == 2 else (priors[:, :2] + priors[:, 2:]) / 2
    hidden = _inside(centres, crowds) & ~_inside(centres, objects)
    if priors.shape[1] == 4 and len(objects):
        ious = bbox_overlaps(priors, objects)
        # The best anchors of an object may be assigned to the object at any IoU.
        hidden &= ~((ious >= least) | (ious == ious.max(0).values)).any(1)
    return hidden


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Mark the points ``[n, 2]`` that lie in any of the boxes ``[m, 4]``."""
    low, high = boxes[:, :2].to(points), boxes[:, 2:].to(points)
    return ((points[:, None] >= low) & (points[:, None] <= high)).all(2).any(1)
