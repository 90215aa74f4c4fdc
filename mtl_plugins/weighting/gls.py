"""GLS: the geometric mean of the losses."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mtl_plugins.weighting.base import LowerBounds, Weighting, geometric_mean


class GLS(Weighting):
    r"""Geometric loss strategy (`Chennupati et al. 2019, eq. 3 <https://arxiv.org/abs/1904.08492>`_).

    The model descends :math:`\bigl( \prod_t D_t \bigr)^{1/T}` with :math:`D_t = L_t - m_t` over the
    tasks taking part, whose gradient has the factors
    :math:`w_t = \bigl( \prod_k D_k \bigr)^{1/T} / (T D_t)`. With :math:`m_t = 0`, as in the paper,
    the gradient does not depend on the units of the losses, up to one factor for all of them.

    A loss at its lower bound, such as the 0 of a batch without an example, has no gradient and
    takes no part: the product of the others would vanish with it.

    Args:
        min_losses: Lower bound :math:`m_t` of the losses: one for all, or by name, 0 for a task not
            named.
    """

    needs_losses = True

    def __init__(self, min_losses: float | Mapping[str, float] = 0.0) -> None:
        super().__init__()
        self.min_losses = min_losses
        self._bounds = LowerBounds("GLS", min_losses)

    def check(self, tasks: Collection[str]) -> None:
        self._bounds.check(tasks)

    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        if losses is None:
            raise ValueError("GLS needs the losses of the step")
        above = self._bounds.above({task: losses[task] for task in tasks})
        factors = geometric_mean(above, dict.fromkeys(above, 1.0 / max(len(above), 1)))
        return {task: factors.get(task, 0.0) for task in tasks}
