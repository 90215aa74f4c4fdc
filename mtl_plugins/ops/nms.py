"""Non-maximum suppression with mmcv's pixel ``offset``.

Boxes are (N, 4) as x1, y1, x2, y2 in pixels and scores (N,). With offset 1 a box reaches to
the far edge of its last pixel: its width is x2 - x1 + 1.
"""

from __future__ import annotations

from ctypes import c_float

import torch
from torch import Tensor
from torchvision import ops


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Drop every box that overlaps a better one by more than ``iou_threshold``.

    Returns:
        Indices of the kept boxes by descending score, on the device of ``boxes``.
    """
    extents = _extents(boxes, offset)
    # mmcv's kernels compare in float32, torchvision's CPU kernel does not: ties would differ.
    threshold = c_float(iou_threshold).value
    keep: Tensor = ops.nms(extents, scores.to(extents.dtype), threshold)
    return keep


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> tuple[Tensor, Tensor]:
    """Lower scores by the overlap with better boxes instead of dropping boxes outright.

    The best box left is taken, the scores of the others are decayed and boxes below ``min_score``
    dropped, until no box is left. Meant for CPU tensors: each step reads a value.

    Args:
        boxes: Boxes (N, 4) in pixels.
        scores: Scores (N,).
        iou_threshold: IoU from which methods 0 and 1 decay scores.
        sigma: Width of the decay of method 2.
        min_score: Score below which a box is dropped.
        method: Decay by IoU ``u``: 0 drops at ``u >= iou_threshold``, 1 multiplies by ``1 - u``
            there, 2 multiplies by ``exp(-u^2 / sigma)`` everywhere.
        offset: Pixels, 0 or 1, added to width and height of the boxes.

    Returns:
        Kept boxes with their decayed scores (M, 5), in the order taken, and their indices (M,).
    """
    extents = _extents(boxes, offset)
    final = scores.clone()
    left, score = torch.arange(len(scores)), scores
    taken: list[int] = []
    while len(left):
        best = score.argmax()
        index = int(left[best])
        taken.append(index)
        final[index] = score[best]
        # The IoU of two empty boxes is 0 / 0; they do not overlap.
        overlap = ops.box_iou(extents[index : index + 1], extents[left])[0].nan_to_num()
        score = score * _decay(overlap, iou_threshold, sigma, method)
        stays = (score >= min_score) & (left != index)
        left, score = left[stays], score[stays]
    keep = torch.tensor(taken, dtype=torch.long)
    return torch.cat([boxes[keep], final[keep, None]], dim=1), keep


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group boxes with the better box that they overlap by ``iou_threshold`` or more.

    Meant for CPU tensors: each group reads values.

    Args:
        dets: Boxes in pixels with their scores (N, 5).
        iou_threshold: IoU from which a box belongs to a better one.

    Returns:
        Indices of each kept box and of the boxes that it suppresses, both by descending score.
    """
    boxes = dets[:, :4]
    left = dets[:, 4].argsort(descending=True)
    groups: list[list[int]] = []
    while len(left):
        best = left[:1]
        overlap = ops.box_iou(boxes[best], boxes[left])[0].nan_to_num()
        member = overlap >= c_float(iou_threshold).value
        member[0] = True
        groups.append(left[member].tolist())
        left = left[~member]
    return groups


def _decay(overlap: Tensor, iou_threshold: float, sigma: float, method: int) -> Tensor:
    if method == 2:
        return torch.exp(-(overlap**2) / sigma)
    remains = 1 - overlap if method == 1 else torch.zeros_like(overlap)
    return torch.where(overlap >= iou_threshold, remains, 1.0)


def _extents(boxes: Tensor, offset: int) -> Tensor:
    """Return boxes with ``offset`` in width and height; at least float32, for torchvision."""
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    return torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
