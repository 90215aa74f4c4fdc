"""Phase 2 of connection strength as loops over channel groups and tasks, from paper D."""

from __future__ import annotations

import torch
from torch import Tensor


def algorithm_1(gradients: list[Tensor], top: list[int]) -> Tensor:
    """Follow the lines 10 to 15 of the paper's algorithm 1 for one layer, group by group."""
    gradients = [g.double().clone() for g in gradients]
    for i in range(len(gradients)):
        channels = [p for p, task in enumerate(top) if task == i]
        for j in range(len(gradients)):
            if j == i:
                continue
            dot = sum(float((gradients[i][p] * gradients[j][p]).sum()) for p in channels)
            if dot < 0:
                square = sum(float((gradients[i][p] ** 2).sum()) for p in channels)
                for p in channels:
                    gradients[j][p] = gradients[j][p] - dot / square * gradients[i][p]
    return sum(gradients[1:], gradients[0])


def per_channel(gradients: list[Tensor], top: list[int]) -> Tensor:
    """Project each channel on its own, which is another method."""
    rows = [algorithm_1([g[p : p + 1] for g in gradients], top[p : p + 1]) for p in range(len(top))]
    return torch.cat(rows)
