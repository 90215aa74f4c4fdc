"""RotoGrad: gradients of features are made equally long, and rotated towards each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtl_plugins.aggregation.base import GramianAggregator
from mtl_plugins.aggregation.solvers import Matrix, Vector
from mtl_plugins.rotations import RotationOptimizer, Rotations


class RotoGrad(GramianAggregator):
    r"""Gradient homogenization (`Javaloy & Valera 2022 <https://arxiv.org/abs/2103.02631>`_).

    Of the gradients :math:`g_t` of the shared features, the trunk gets (algorithm 1)

    .. math:: d = C \sum_t \frac{g_t}{\|g_t\|}, \quad C = \sum_t \alpha_t \|g_t\|, \quad
              \alpha_t = \frac{\|g_t\| / \|g_t^0\|}{\sum_k \|g_k\| / \|g_k^0\|}

    where :math:`g_t^0` is the gradient of the first step, and from step ``burn_in`` on that of this
    step. Behind the features, a :class:`~mtl_plugins.rotations.Rotations` of the model turns them
    by :math:`R_t` for the head of task t. The rotations descend, by Adam,

    .. math:: L_t(R_t) = -\sum_n \langle R_t^\top \tilde g_{t,n}, v_n \rangle, \quad
              v_n = \frac1T \sum_k \frac{g_{k,n}}{\|g_k\|}

    over the examples (and locations) n, where :math:`\tilde g_t` is the gradient of the rotated
    features: the same as :math:`\|R_t v_n - \tilde g_{t,n}\|^2` of the authors' code, up to a
    constant and a factor. The gradients of the heads are the plain ones.

    Args:
        lr: Learning rate of the rotations, which is to be below that of the model; the authors'
            code has no default.
        decay: Factor of this learning rate from step to step, by default that of the authors'
            example. The paper asks for a rate that falls faster than the model's.
        burn_in: Number of aggregations (with accumulation, of micro-batches) after which the first
            length of each gradient is taken anew, since the very first gradients change quickly.
        rotate: Whether the model has rotations; False takes the lengths alone.

    Raises:
        ValueError: An argument is out of its range.
    """

    scale = "sum"

    def __init__(
        self, lr: float = 1e-5, decay: float = 0.99999, burn_in: int = 20, rotate: bool = True
    ) -> None:
        if not lr > 0.0:
            raise ValueError(f"lr is above 0, got {lr}")
        if not 0.0 < decay <= 1.0:
            raise ValueError(f"decay lies in (0, 1], got {decay}")
        if burn_in < 0:
            raise ValueError(f"burn_in is at least 0, got {burn_in}")
        self.lr, self.decay, self.burn_in, self.rotate = lr, decay, burn_in, rotate
        self._first: dict[int, float] = {}
        self._seen: dict[int, int] = {}  # steps of each task
        self._optimizer: RotationOptimizer | None = None
        self._resumed: Mapping[str, Any] | None = None

    @property
    def of_parameters(self) -> bool:
        return not self.rotate

    def meet(self, model: nn.Module, tasks: Sequence[str]) -> None:
        if not self.rotate:
            return
        found = [part for part in model.modules() if isinstance(part, Rotations)]
        if len(found) != 1:
            raise ValueError(
                "aggregator: RotoGrad learns the rotations of one module Rotations, and "
                f"{type(model).__name__} has {len(found) or 'none'}; in a config they are for "
                "MultiTaskSegmentor of the OpenMMLab adapter, model=dict(rotations=dict()), as "
                "--mtl rotograd has it"
            )
        if self._optimizer is None or self._optimizer.rotations is not found[0]:
            found[0].learned = True
            self._optimizer = RotationOptimizer(found[0], self.lr, self.decay)
            if self._resumed is not None:
                self._optimizer.load_state_dict(self._resumed)

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        norms = [math.sqrt(max(row[t], 0.0)) for t, row in enumerate(gramian)]
        active = {t: norm for t, norm in zip(tasks, norms, strict=True) if norm > 0.0}
        for t, norm in active.items():
            seen = self._seen.get(t, 0)
            if t not in self._first or seen == self.burn_in:
                self._first[t] = norm
            self._seen[t] = seen + 1
        ratios = {t: norm / self._first[t] for t, norm in active.items()}
        total = sum(ratios.values())
        length = sum(ratios[t] / total * norm for t, norm in active.items())
        return [length / norm if norm > 0.0 else 1.0 for norm in norms]

    def learn(
        self, rows: Mapping[str, Tensor], lengths: Mapping[str, float], features: Sequence[Tensor]
    ) -> None:
        if self._optimizer is not None:
            self._optimizer.add(rows, lengths, features)
        elif self.rotate:
            raise ValueError(
                "aggregator: RotoGrad does not know the rotations; call protect(model) before the "
                "first step"
            )

    def finish(self, skipped: bool) -> None:
        if self._optimizer is not None:
            (self._optimizer.forget if skipped else self._optimizer.step)()

    def state_dict(self) -> dict[str, Any]:
        optimizer = self._optimizer
        return {
            "first": dict(self._first),
            "seen": dict(self._seen),
            "rotations": self._resumed if optimizer is None else optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._first, self._seen = dict(state["first"]), dict(state["seen"])
        self._resumed = state["rotations"]
        if self._optimizer is not None and self._resumed is not None:
            self._optimizer.load_state_dict(self._resumed)
