"""ExcessMTL: more weight for the task that is furthest from its optimum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_plugins.aggregation.base import Aggregator
from mtl_plugins.aggregation.memory import RowMemory, in_single
from mtl_plugins.gradients import combine


class ExcessMTL(Aggregator):
    r"""Weights from excess risks (`He et al. 2024, eq. 6 to 9 <https://arxiv.org/abs/2402.02009>`_).

    With the sum :math:`S_t` of the squared gradients of all steps so far, as in Adagrad, the excess
    risk of a task is estimated as :math:`e_t = g_t^\top \operatorname{diag}(S_t + \epsilon)^{-1/2}
    g_t`, in units of its first value. The weights, at first 1, go by

    .. math:: w_t \leftarrow T \operatorname{softmax}_t(\log w_t + \eta e_t), \qquad
              d = \sum_t w_t g_t

    over the tasks taking part. As in the authors' code the weights sum to :math:`T` (to 1 in the
    paper), hold for what a task has alone too, and are measured from the first step on, without a
    warm-up. The sums, :math:`T` times the shared parameters, are part of the checkpoint.

    Args:
        eta: Step size :math:`\eta`.
        eps: Number :math:`\epsilon` that is added to the squares.
    """

    scale = "sum"
    scales_own = True
    remembers_rows = True
    of_features = False

    def __init__(self, eta: float = 0.01, eps: float = 1e-7) -> None:
        if eta <= 0.0:
            raise ValueError(f"eta is positive, got {eta}")
        if eps <= 0.0:
            raise ValueError(f"eps is positive, got {eps}")
        self.eta, self.eps = eta, eps
        self._squares = RowMemory()
        self._first: dict[int, float] = {}
        self._weights: dict[int, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "squares": self._squares.state_dict(),
            "first": dict(self._first),
            "weights": dict(self._weights),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._squares.load_state_dict(state["squares"])
        self._first, self._weights = dict(state["first"]), dict(state["weights"])

    def __call__(self, jacobian: Tensor, tasks: Sequence[int] | None = None) -> Tensor:
        tasks = range(len(jacobian)) if tasks is None else tasks
        rows = in_single(jacobian)
        squares = rows.square()
        total = self._squares.get(tasks, rows).add_(squares)
        self._squares.keep(tasks, total)
        # One task after the other: intermediate results are of one row's size.
        risks = [(s / (t + self.eps).sqrt()).sum() for s, t in zip(squares, total, strict=True)]
        logits = []
        for task, risk in zip(tasks, torch.stack(risks).tolist(), strict=True):
            if risk > 0.0:
                self._first.setdefault(task, risk)
            relative = risk / self._first[task] if task in self._first else 1.0
            logits.append(math.log(self._weights.get(task, 1.0)) + self.eta * relative)
        top = max(logits)
        # A weight of zero would stay zero for good.
        powers = [math.exp(max(logit - top, -600.0)) for logit in logits]
        weights = [len(powers) * power / sum(powers) for power in powers]
        self._weights |= dict(zip(tasks, weights, strict=True))
        self.own_factors = weights
        return combine(torch.tensor(weights, dtype=torch.float64), rows).to(jacobian)
