"""DBMTL: running means of the gradients, all made as long as the longest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_plugins.aggregation.base import Aggregator
from mtl_plugins.aggregation.memory import RowMemory, in_single
from mtl_plugins.gradients import combine


class DBMTL(Aggregator):
    r"""Gradients' half of dual balancing (`Lin et al. 2023, algorithm 1 <https://arxiv.org/abs/2308.12029>`_).

    In step :math:`k = 1, 2, \dots`, from :math:`\hat g_t = 0`,

    .. math:: \hat g_t \leftarrow g_t + \beta_k (\hat g_t - g_t), \qquad
              d = \max_s \|\hat g_s\| \sum_t \frac{\hat g_t}{\|\hat g_t\|}, \qquad
              \beta_k = \beta / k^\sigma

    With the weighting :class:`Log`, which has the tasks descend the logarithms of their losses, the
    method is DB-MTL. The defaults are those of the authors' code. The running means, :math:`T`
    times the shared parameters, are part of the checkpoint.

    Args:
        beta: Share :math:`\beta` of the past in the running means; 0 for none.
        sigma: Decay :math:`\sigma` of that share.
    """

    scale = "sum"
    remembers_rows = True
    of_features = False

    def __init__(self, beta: float = 0.9, sigma: float = 0.0) -> None:
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"beta lies in [0, 1), got {beta}")
        if sigma < 0.0:
            raise ValueError(f"sigma is not negative, got {sigma}")
        self.beta, self.sigma = beta, sigma
        self._step = 0
        self._means = RowMemory()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"step": self._step, "means": self._means.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._step = state["step"]
        self._means.load_state_dict(state["means"])

    def __call__(self, jacobian: Tensor, tasks: Sequence[int] | None = None) -> Tensor:
        tasks = range(len(jacobian)) if tasks is None else tasks
        means = in_single(jacobian)
        self._step += 1
        if self.beta > 0.0:
            share = self.beta / self._step**self.sigma
            means = means + share * (self._means.get(tasks, means) - means)
            self._means.keep(tasks, means)
        norms = torch.linalg.vector_norm(means, dim=1, dtype=torch.float64)
        factors = torch.where(norms > 0.0, norms.max() / norms, 0.0)
        return combine(factors.clamp(max=torch.finfo(means.dtype).max), means).to(jacobian)
