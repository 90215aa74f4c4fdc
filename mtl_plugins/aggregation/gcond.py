"""GCond: the worst conflicts are settled first, mostly for the steadier task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from mtl_plugins.aggregation.base import Aggregator
from mtl_plugins.aggregation.memory import RowMemory, in_single
from mtl_plugins.aggregation.solvers import Matrix, Vector, dot
from mtl_plugins.gradients import gramian_of
from mtl_plugins.transfer import HostCopy, send


class GCond(Aggregator):
    r"""Gradient conductor (`Alves Limarenko et al. 2025 <https://arxiv.org/abs/2509.07252>`_).

    At most :math:`2T` times, the pair of gradients with the lowest cosine :math:`c` below the
    threshold ``weak`` is settled between a winner w and a loser l:

    .. math:: v_w \leftarrow v_w - \sin(a) \frac{v_w \cdot v_l}{\|v_l\|^2} v_l, \qquad
              v_l \leftarrow v_l - \sin(\min(a, \tfrac\pi2)) \frac{v_w \cdot v_l}{\|v_w\|^2} v_w,
              \qquad d = \sum_t v_t

    at once, where the angle :math:`a` goes from 0 at ``weak`` to :math:`\tfrac\pi2` at ``main``,
    and on to :math:`\pi` at ``critical``, quadratically. The winner has the higher score
    ``stability · s + strength · r``: :math:`s` is the cosine with the task's own :math:`v` of the
    step before, at least 0, and :math:`r` is the task's share of both lengths, each in units of
    its running mean. A task that has won the last ``window`` conflicts loses the next one.

    The method is that of the authors' code (its smooth form) without what belongs to training: the
    accumulation of micro-batches is the run's (``accumulative_counts``), and the momentum is the
    optimizer's. The :math:`v` of the last step, :math:`T` times the shared parameters, are part of
    the checkpoint.

    Args:
        thresholds: Cosines ``critical``, ``main`` and ``weak``, in increasing order.
        stability: Weight of the stability in the score.
        strength: Weight of the strength in the score.
        window: Number of conflicts after which a task has won enough; 0 for never.
        norm_beta: Share of the past in the running means of the lengths, which begin at 1.
    """

    scale = "sum"
    remembers_rows = True
    of_features = False

    def __init__(
        self,
        thresholds: Sequence[float] = (-0.8, -0.5, 0.0),
        stability: float = 0.8,
        strength: float = 0.2,
        window: int = 3,
        norm_beta: float = 0.95,
    ) -> None:
        given = list(thresholds)
        if len(given) != 3 or not -1.0 <= given[0] < given[1] < given[2] <= 1.0:
            raise ValueError(f"thresholds: expected three increasing cosines, got {thresholds!r}")
        if min(stability, strength) < 0.0 or window < 0:
            raise ValueError("stability, strength and window are not negative")
        if not 0.0 <= norm_beta < 1.0:
            raise ValueError(f"norm_beta lies in [0, 1), got {norm_beta}")
        self.thresholds = given
        self.stability, self.strength = stability, strength
        self.window, self.norm_beta = window, norm_beta
        self._before = RowMemory()
        self._usual: dict[int, float] = {}
        self._winners: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "before": self._before.state_dict(),
            "usual": dict(self._usual),
            "winners": list(self._winners),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._before.load_state_dict(state["before"])
        self._usual, self._winners = dict(state["usual"]), list(state["winners"])

    def __call__(self, jacobian: Tensor, tasks: Sequence[int] | None = None) -> Tensor:
        tasks = range(len(jacobian)) if tasks is None else tasks
        rows = in_single(jacobian)
        before = self._before.get(tasks, rows)
        steady = torch.nn.functional.normalize(before, dim=1, eps=1e-30)
        along = HostCopy((rows @ steady.T).T)
        gramian: Matrix = gramian_of(rows).tolist()
        found = self.settle(gramian, along.read().tolist(), tasks)
        coefficients = torch.tensor(found, dtype=torch.float64)
        settled = send(coefficients, rows.device, rows.dtype) @ rows
        self._before.keep(tasks, settled)
        return settled.sum(dim=0).to(jacobian)

    def settle(self, gramian: Matrix, along: Matrix, tasks: Sequence[int]) -> Matrix:
        """Find the ``v`` in terms of the gradients.

        Args:
            gramian: Gramian ``[T, T]``.
            along: Products ``[T, T]`` of each task's unit ``v`` of the step before (first index)
                with each gradient (second index).
            tasks: Number of each row's task.

        Returns:
            The coefficients ``[T, T]`` of each ``v``.
        """
        size = len(gramian)
        v = [[float(i == j) for j in range(size)] for i in range(size)]
        for i, task in enumerate(tasks):
            length, past = math.sqrt(max(gramian[i][i], 0.0)), self._usual.get(task, 1.0)
            self._usual[task] = self.norm_beta * past + (1.0 - self.norm_beta) * length
        products = [list(row) for row in gramian]  # products of the v with each other
        for _ in range(2 * size):
            norms = [math.sqrt(max(row[i], 0.0)) for i, row in enumerate(products)]
            # The rest that rounding leaves of a gradient has no direction.
            live = [i for i, n in enumerate(norms) if n > 1e-6 * math.sqrt(max(gramian[i][i], 0.0))]
            cosines = [
                (products[i][j] / (norms[i] * norms[j]), i, j) for i, j in combinations(live, 2)
            ]
            cosine, i, j = min(cosines, default=(1.0, 0, 0))
            if cosine >= self.thresholds[2] - 1e-12:
                break
            scores = [self.stability * max(dot(along[t], v[t]) / norms[t], 0.0) for t in (i, j)]
            strengths = [norms[t] / max(self._usual[tasks[t]], 1e-300) for t in (i, j)]
            scores = [
                s + self.strength * r / sum(strengths)
                for s, r in zip(scores, strengths, strict=True)
            ]
            winner, loser = (j, i) if self._wins(tasks[i], tasks[j], scores) else (i, j)
            if self.window:
                self._winners = [*self._winners, tasks[winner]][-self.window :]
            angle = self._angle(cosine)
            by_winner = cosine * norms[loser] / norms[winner] * math.sin(min(angle, math.pi / 2))
            by_loser = cosine * norms[winner] / norms[loser] * math.sin(angle)
            for rows in (v, products):  # rows of the products, and then columns
                rows[winner], rows[loser] = (
                    [w - by_loser * x for w, x in zip(rows[winner], rows[loser], strict=True)],
                    [x - by_winner * w for w, x in zip(rows[winner], rows[loser], strict=True)],
                )
            for row in products:
                w, x = row[winner], row[loser]
                row[winner], row[loser] = w - by_loser * x, x - by_winner * w
        return v

    def _wins(self, first: int, second: int, scores: Vector) -> bool:
        """Tell if the second of two tasks wins."""
        if self.window and len(self._winners) == self.window and len(set(self._winners)) == 1:
            if self._winners[0] == first:
                return True
            if self._winners[0] == second:
                return False
        return scores[1] > scores[0]

    def _angle(self, cosine: float) -> float:
        critical, main, weak = self.thresholds
        if cosine >= main:
            return math.pi / 2 * (weak - cosine) / (weak - main)
        beyond = min((main - cosine) / (main - critical), 1.0)
        return math.pi / 2 * (1.0 + beyond * beyond)
