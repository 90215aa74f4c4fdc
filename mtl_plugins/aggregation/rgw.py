"""RGW: random gradient weighting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_plugins.aggregation.base import RandomAggregator
from mtl_plugins.aggregation.solvers import Matrix, Vector


class RGW(RandomAggregator):
    """Weights ``softmax(z)``, ``z ~ N(0, 1)^T`` drawn at every step (Lin et al. 2022, section 3).

    Paper: `arXiv 2111.10603 <https://arxiv.org/abs/2111.10603>`_.

    Args:
        seed: Seed of the draws; None takes the seed of the run.

    """

    scale = "mean"

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        draw = torch.randn(len(gramian), generator=self.generator(), dtype=torch.float64)
        return draw.softmax(dim=0).tolist()
