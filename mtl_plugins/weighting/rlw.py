"""RLW: random loss weighting."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from mtl_plugins.draws import RandomMethod
from mtl_plugins.weighting.base import Weighting


class RLW(RandomMethod, Weighting):
    """Weights ``softmax(z)``, ``z ~ N(0, 1)^T`` drawn for every batch (Lin et al. 2022, section 3).

    Paper: `arXiv 2111.10603 <https://arxiv.org/abs/2111.10603>`_.

    Args:
        seed: Seed of the draws; None takes the seed of the run.

    """

    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        draw = torch.randn(len(tasks), generator=self.generator(), dtype=torch.float64)
        return dict(zip(tasks, draw.softmax(dim=0).tolist(), strict=True))
