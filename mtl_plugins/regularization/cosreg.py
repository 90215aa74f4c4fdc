"""CosReg: make the gradients of the tasks orthogonal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mtl_plugins.regularization.base import Regularizer


class CosReg(Regularizer):
    r"""Squared cosines of the task gradients (Suteu and Guo 2019, section 3).

    Paper: `arXiv 1912.06844 <https://arxiv.org/abs/1912.06844>`_.

    .. math:: \lambda \sum_{i<j} \cos^2(g_i, g_j)

    A task without a gradient is orthogonal to all others.

    Args:
        weight: Factor :math:`\lambda` of the term.
    """

    def __init__(self, weight: float = 1.0) -> None:
        if weight < 0.0:
            raise ValueError(f"weight: expected at least 0, got {weight}")
        self.weight = weight

    def __call__(self, jacobian: Tensor) -> Tensor:
        rows = jacobian.to(torch.promote_types(jacobian.dtype, torch.float32))
        # The squares of the elements must neither overflow nor vanish.
        largest = rows.detach().abs().amax(dim=1, keepdim=True)
        unit = normalize(rows / torch.where(largest > 0.0, largest, 1.0), dim=1)
        cosines = unit @ unit.T
        return self.weight * cosines.triu(diagonal=1).square().sum()
