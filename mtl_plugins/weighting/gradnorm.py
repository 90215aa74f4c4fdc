"""GradNorm: tasks that lag behind get longer gradients."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from mtl_plugins.weighting.base import LearnedWeighting


class GradNorm(LearnedWeighting):
    r"""Gradient normalisation (`Chen et al. 2018, eq. 1 and 2 <https://arxiv.org/abs/1711.02257>`_).

    With :math:`n_t = \|\nabla_W L_t\|` at the last shared layer, the weights, at first 1, descend

    .. math:: \sum_t \left| w_t n_t - \bar{n} r_t^\alpha \right|, \quad
              \bar{n} = \operatorname{mean}_k w_k n_k, \quad
              r_t = \frac{L_t / L_t(0)}{\operatorname{mean}_k L_k / L_k(0)}

    with the targets held constant, and are then scaled back to the sum that they had, so that all
    weights known sum to their number. A task that is absent, or has no gradient, keeps its weight
    and has no say.

    Args:
        alpha: Strength of the preference for tasks that learn slowly; 0 makes all norms equal.
        lr: Learning rate of the weights.
    """

    needs_norms = True
    initial = 1.0
    bounds = (1e-3, math.inf)  # Adam's steps are about as long as lr, and could pass 0

    def __init__(self, alpha: float = 1.5, lr: float = 0.025) -> None:
        super().__init__(lr)
        if alpha < 0.0:
            raise ValueError(f"alpha: expected at least 0, got {alpha}")
        self.alpha = alpha
        self._first: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"first": dict(self._first)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._first = dict(state["first"])

    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        return {task: self.number(task) for task in tasks}

    def gradient(self, losses: Mapping[str, float], norms: Mapping[str, float]) -> dict[str, float]:
        """Return ``±n_t``, towards the target, for the tasks that have a gradient."""
        lengths = {t: self.number(t) * norms[t] for t in losses if norms.get(t, 0.0) > 0.0}
        if not lengths:
            return {}
        mean = sum(lengths.values()) / len(lengths)
        rates = self._rates({t: losses[t] for t in lengths})
        above = {t: length - mean * rates[t] ** self.alpha for t, length in lengths.items()}
        return {t: norms[t] * ((x > 0.0) - (x < 0.0)) for t, x in above.items()}

    def _rates(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Return how slowly each task learns, in units of the mean; 1 where that is undefined."""
        left = {t: max(x, 0.0) / self._first[t] for t, x in losses.items() if t in self._first}
        mean = sum(left.values()) / max(len(left), 1)
        return {t: left[t] / mean if mean > 0.0 and t in left else 1.0 for t in losses}

    def update(self, losses: Mapping[str, float], norms: Mapping[str, float] | None = None) -> None:
        if norms is None:
            raise ValueError("GradNorm needs the norms of the gradients")
        for task, loss in losses.items():
            if loss > 0.0:  # from 0 or below nothing can be measured
                self._first.setdefault(task, loss)
        gradient = self.gradient(losses, norms)
        before = sum(map(self.number, gradient))
        self.descend(gradient)
        after = sum(map(self.number, gradient))
        for task in gradient:
            self._numbers[task] *= before / after
