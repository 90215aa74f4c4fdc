"""FAMO: all losses fall at the same rate, seen from the losses alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from mtl_plugins.weighting.base import LearnedWeighting, LowerBounds, softmax


class FAMO(LearnedWeighting):
    r"""Fast adaptive multitask optimisation (Liu et al. 2023, algorithm 1).

    Paper: `arXiv 2306.03792 <https://arxiv.org/abs/2306.03792>`_.

    With :math:`D_t = L_t - m_t + \epsilon` and :math:`z = \operatorname{softmax}(\xi)` over the
    tasks taking part, the model descends :math:`\sum_t z_t \log D_t / c`, where
    :math:`c = \sum_t z_t / D_t` is held constant. The factor of :math:`\nabla L_t` is thus
    :math:`z_t / (c D_t)`, and the factors sum to 1. After the step, which has lowered
    :math:`\log D_t` by :math:`\delta_t`, Adam descends :math:`J^\top \delta` with the Jacobian
    :math:`J` of the softmax: a loss that fell fast gets less.

    A loss at its lower bound, such as the 0 of a batch without an example, has no gradient and
    takes no part in the step, where :math:`1 / D_t` would leave nothing to the other tasks.

    Args:
        lr: Learning rate of the logits.
        weight_decay: L2 penalty on the logits.
        eps: Number :math:`\epsilon` that is added to every distance.
        min_losses: Lower bound :math:`m_t` of the losses: one for all, or by name, 0 for a task not
            named.
    """

    needs_losses = True
    needs_new_losses = True

    def __init__(
        self,
        lr: float = 0.025,
        weight_decay: float = 0.01,
        eps: float = 1e-8,
        min_losses: float | Mapping[str, float] = 0.0,
    ) -> None:
        super().__init__(lr, weight_decay)
        if eps < 0.0:
            raise ValueError(f"eps: expected at least 0, got {eps}")
        self.eps = eps
        self.min_losses = min_losses
        self._bounds = LowerBounds("FAMO", min_losses)

    def check(self, tasks: Collection[str]) -> None:
        self._bounds.check(tasks)

    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        if losses is None:
            raise ValueError("FAMO needs the losses of the step")
        distances = self._distances({task: losses[task] for task in tasks})
        if not distances:
            return self._shares(tasks)
        slopes = {t: z / distances[t] for t, z in self._shares(distances).items()}
        total = sum(slopes.values())
        return {task: slopes.get(task, 0.0) / total for task in tasks}

    def gradient(
        self, losses: Mapping[str, float], new_losses: Mapping[str, float]
    ) -> dict[str, float]:
        r"""Return :math:`(J^\top \delta)_t = z_t (\delta_t - \sum_k z_k \delta_k)`."""
        bounded = {t: max(x, self._bounds.of(t)) for t, x in new_losses.items()}
        old, new = self._distances(losses), self._distances(bounded)
        delta = {t: math.log(old[t]) - math.log(new[t]) for t in old if t in new}
        z = self._shares(delta)
        mean = sum(z[t] * delta[t] for t in delta)
        return {t: z[t] * (delta[t] - mean) for t in delta}

    def update_after(self, losses: Mapping[str, float], new_losses: Mapping[str, float]) -> None:
        self.descend(self.gradient(losses, new_losses))

    def _shares(self, tasks: Iterable[str]) -> dict[str, float]:
        return softmax({task: self.number(task) for task in tasks})

    def _distances(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Return ``D_t`` of the tasks whose loss is finite and above its bound."""
        return {task: left + self.eps for task, left in self._bounds.above(losses).items()}
