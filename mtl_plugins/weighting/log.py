"""Log: the tasks descend the logarithms of their losses."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mtl_plugins.weighting.base import LowerBounds, Weighting


class Log(Weighting):
    r"""Logarithmic losses (scale-invariant linear scalarisation, Navon et al. 2022, section 5).

    Paper: `arXiv 2202.01017 <https://arxiv.org/abs/2202.01017>`_.

    The model descends :math:`\sum_t \log(L_t - m_t + \epsilon)` over the tasks taking part, whose
    gradient has the factors :math:`w_t = 1 / (L_t - m_t + \epsilon)`. With the aggregator
    :class:`DBMTL` the method is DB-MTL (Lin et al. 2023, `arXiv 2308.12029
    <https://arxiv.org/abs/2308.12029>`_).

    A loss at its lower bound, such as the 0 of a batch without an example, has no gradient and
    takes no part.

    Args:
        min_losses: Lower bound :math:`m_t` of the losses: one for all, or by name, 0 for a task not
            named.
        eps: Number :math:`\epsilon` that is added to every distance.
    """

    needs_losses = True

    def __init__(self, min_losses: float | Mapping[str, float] = 0.0, eps: float = 1e-8) -> None:
        super().__init__()
        if eps < 0.0:
            raise ValueError(f"eps: expected at least 0, got {eps}")
        self.min_losses, self.eps = min_losses, eps
        self._bounds = LowerBounds("Log", min_losses)

    def check(self, tasks: Collection[str]) -> None:
        self._bounds.check(tasks)

    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        if losses is None:
            raise ValueError("Log needs the losses of the step")
        above = self._bounds.above({task: losses[task] for task in tasks})
        # A step works in single precision, where a larger weight is not finite.
        return {t: min(1.0 / (above[t] + self.eps), 1e30) if t in above else 0.0 for t in tasks}
