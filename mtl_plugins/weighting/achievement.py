"""Achievement: more weight for the tasks that are far from their single-task model."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mtl_plugins.weighting.base import LowerBounds, geometric_mean, softmax
from mtl_plugins.weighting.indicators import IndicatorWeighting


class Achievement(IndicatorWeighting):
    r"""Achievement-based loss (Yun and Cho 2023, in the form of the authors' code).

    Paper: `ICCV 2023
    <https://openaccess.thecvf.com/content/ICCV2023/html/Yun_Achievement-Based_Training_Progress_Balancing_for_Multi-Task_Learning_ICCV_2023_paper.html>`_.

    The model descends the weighted geometric mean :math:`\prod_t D_t^{w_t}`, with
    :math:`D_t = L_t - m_t` and

    .. math:: w = \operatorname{softmax}_t \Bigl( \bigl( 1 -
              \frac{a_t}{(1 + \epsilon) \, p_t} \bigr)^\gamma \Bigr)

    over the tasks taking part, whose gradient has the factors :math:`w_t \prod_k D_k^{w_k} / D_t`.
    Here :math:`a_t` is a running mean of the task's accuracy in the validation and :math:`p_t` its
    potential, that of a model of this task alone. Of an error :math:`e` with the potential
    :math:`p`, :math:`p / e` takes the place of :math:`a / p`. Beyond :math:`(1 + \epsilon) p` the
    bracket is 0; in the authors' code its square grows again. Before the first validation the
    weights are those of :class:`GLS`.

    A loss at its lower bound, such as the 0 of a batch without an example, takes no part.

    Args:
        potential: Potential :math:`p_t` by task, in the unit of its metric as logged.
        gamma: Focus :math:`\gamma` on tasks that are far from their potential.
        margin: Margin :math:`\epsilon` by which a task may exceed its potential.
        momentum: Share of each new indicator in the running mean.
        min_losses: Lower bound :math:`m_t` of the losses: one for all, or by name, 0 for a task not
            named.
        indicators: Name of the metric of each task; None, or a task not named, for the one that the
            run knows.
    """

    needs_losses = True

    def __init__(
        self,
        potential: Mapping[str, float],
        gamma: float = 2.0,
        margin: float = 0.05,
        momentum: float = 0.1,
        min_losses: float | Mapping[str, float] = 0.0,
        indicators: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(momentum, indicators)
        if not isinstance(potential, Mapping):
            raise TypeError(f"potential: expected a dict by task, got {potential!r}")
        if potential and min(potential.values()) <= 0.0:
            raise ValueError(f"potential: expected numbers above 0, got {dict(potential)}")
        if gamma < 0.0 or margin < 0.0:
            raise ValueError(f"gamma, margin: expected at least 0, got {gamma} and {margin}")
        self.potential, self.gamma, self.margin = potential, gamma, margin
        self.min_losses = min_losses
        self._bounds = LowerBounds("Achievement", min_losses)

    def check(self, tasks: Collection[str]) -> None:
        super().check(tasks)
        self._bounds.check(tasks)
        self.check_names("potential", self.potential, tasks)
        for task in tasks:
            if task not in self.potential:
                raise KeyError(
                    f"weighting: Achievement.potential: the metric of a model of {task!r} alone is "
                    f"missing, got {dict(self.potential)}"
                )

    def reachable(self, task: str, error: bool, percent: bool) -> float:
        potential = self.potential[task]
        low, high = (1.0, 100.0) if percent else (0.0, 1.0)
        if not error and not low < potential <= high:
            raise ValueError(
                f"weighting: Achievement.potential: that of {task!r} is in the unit of its metric, "
                f"{'percent' if percent else 'a fraction'}, and so above {low:g} and at most "
                f"{high:g}; got {potential:g}"
            )
        return potential

    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        if losses is None:
            raise ValueError("Achievement needs the losses of the step")
        above = self._bounds.above({task: losses[task] for task in tasks})

        def distance(share: float) -> float:
            return max(1.0 - share / (1.0 + self.margin), 0.0) ** self.gamma

        exponents = softmax(self.of_shares(list(above), distance, untold=1.0))
        factors = geometric_mean(above, exponents)
        return {task: factors.get(task, 0.0) for task in tasks}
