"""FORUM: loss weights as the upper, the model as the lower variables of a bi-level problem."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mtl_plugins.adam import Moments, adam_step
from mtl_plugins.aggregation.base import GramianAggregator
from mtl_plugins.aggregation.memory import Shares
from mtl_plugins.aggregation.solvers import (
    Matrix,
    Vector,
    correlation,
    dot,
    regularised,
    simplex_qp,
)
from mtl_plugins.weighting.base import softmax

logger = logging.getLogger(__name__)


class FORUM(GramianAggregator):
    r"""First-order multi-gradient algorithm for bi-level problems (Ye et al. 2024).

    Paper: `arXiv 2401.09257 <https://arxiv.org/abs/2401.09257>`_.

    Loss weights :math:`s = \operatorname{softmax}(\alpha)` are learned together with the model
    :math:`\omega`, so that the losses fall (the upper level) where :math:`\omega` minimises
    :math:`f(\alpha, \omega) = \sum_t s_t L_t(\omega)` (the lower level). The constraint is
    :math:`q = f(\alpha, \omega) - f(\alpha, \tilde\omega) \le 0`, with :math:`\tilde\omega` from a
    few plain steps down :math:`f`:

    .. math:: \nabla_\omega q = \sum_t s_t g_t, \qquad \nabla_{\alpha_t} q = s_t (\Delta_t -
              \textstyle\sum_k s_k \Delta_k), \quad \Delta = L(\omega) - L(\tilde\omega)

    With :math:`F_t = g_t / \|g_t\|` and :math:`\pi_t = \rho - \langle \nabla q, F_t \rangle / \|
    \nabla q \|^2`,

    .. math:: \min_{w \in \Delta,\ \nu \ge \max(w^\top \pi, 0)} \| \textstyle\sum_t w_t F_t + \nu
              \nabla q \|^2 - \nu \rho \| \nabla q \|^2

    is solved exactly, :math:`\lambda \leftarrow \lambda + \beta (w - \lambda)`, and both levels
    descend

    .. math:: d = \sum_t \lambda_t F_t + \max(\lambda^\top \pi, 0) \nabla q,

    the model by its optimizer, :math:`\alpha` by an Adam of its own. In epoch e, from 0,
    :math:`\beta = (e + 1)^{-3/4}`; in a run that counts iterations a hundredth of it stands for an
    epoch, and where its length is not known :math:`\beta = 1`.

    All this is the authors' code. It takes the gradients of :math:`F` and of :math:`q` from two
    batches, here they are of the step's one batch; its gradients are of the heads too, which here
    have the same weights but no part in the inner products. The update is of length 1 rather than
    that of a loss's gradient. The model runs ``steps + 1`` times more in a step, see
    :class:`~mtl_plugins.MultiTaskBackward` for ``again``. Without that, for given gradients alone,
    :math:`\Delta = 0`. Shares, logits and Adam are part of the checkpoint.

    Args:
        rho: Rate :math:`\rho` at which the constraint is approached.
        eta: Length of the plain steps.
        steps: Number of plain steps.
        lr: Learning rate of :math:`\alpha`.
        normalise: Whether :math:`F_t` is of length 1; if not, :math:`F_t = g_t`.
    """

    scale = "mean"
    scales_own = True
    looks_ahead = True

    def __init__(
        self,
        rho: float = 0.1,
        eta: float = 0.1,
        steps: int = 5,
        lr: float = 1e-3,
        normalise: bool = True,
    ) -> None:
        if rho < 0.0 or eta <= 0.0 or lr <= 0.0:
            raise ValueError(f"rho >= 0, eta > 0 and lr > 0, got {rho}, {eta} and {lr}")
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps is an integer of at least 1, got {steps!r}")
        self.rho, self.eta, self.steps, self.lr = rho, eta, steps, lr
        self.normalise = normalise
        self._step = 0
        self._shares = Shares()
        self._logits: dict[int, float] = {}
        self._moments: dict[int, Moments] = {}
        self._ahead: Vector | None = None
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "step": self._step,
            "shares": self._shares.state_dict(),
            "logits": dict(self._logits),
            "moments": dict(self._moments),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._step = state["step"]
        self._shares.load_state_dict(state["shares"])
        self._logits, self._moments = dict(state["logits"]), dict(state["moments"])

    def look_ahead(
        self, tasks: Sequence[int], losses_after: Callable[[Vector, float, int], Vector]
    ) -> None:
        self._ahead = losses_after(self._softmax(tasks), self.eta, self.steps)

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        soft = self._softmax(tasks)
        fallen = self._fallen(losses, soft)
        mean = dot(soft, fallen)
        slope = [s * (x - mean) for s, x in zip(soft, fallen, strict=True)]
        cosines, norms = correlation(gramian)
        # A gradient of zero has no share: with it, to stand still would be the shortest update.
        there = [t for t, n in enumerate(norms) if n > 0.0]
        if not there:
            return [0.0] * len(norms)
        # All in units of the gradients' lengths, of which a row of numbers makes a vector.
        cosines = regularised([[cosines[t][k] for k in there] for t in there], eps)
        scales = [1.0 if self.normalise else norms[t] for t in there]
        q = [soft[t] * norms[t] for t in there]
        q_alpha = math.sqrt(dot(slope, slope))
        image = [dot(row, q) for row in cosines]
        square = dot(image, q) + q_alpha**2
        lacks = [self.rho - f * x / square for f, x in zip(scales, image, strict=True)]
        corners, nus = _corners(lacks)
        points = [
            [w * f + nu * x for w, f, x in zip(corner, scales, q, strict=True)]
            for corner, nu in zip(corners, nus, strict=True)
        ]
        images = [[dot(row, point) for row in cosines] for point in points]
        between = [
            [
                dot(point, other) + nu * mu * q_alpha**2
                for other, mu in zip(images, nus, strict=True)
            ]
            for point, nu in zip(points, nus, strict=True)
        ]
        gains = [self.rho * square * nu for nu in nus]
        # A corner may be much shorter than its parts, and is no more accurate than they are.
        lengths = [sum(point) + nu * q_alpha for point, nu in zip(points, nus, strict=True)]
        mix = simplex_qp(between, gains, lengths, eps)
        found = [dot(mix, corner_t) for corner_t in zip(*corners, strict=True)]
        shares = self._average([tasks[t] for t in there], found)
        nu = max(dot(shares, lacks), 0.0)
        self._learn(tasks, [nu * x for x in slope])
        weights = [nu * s for s in soft]
        for t, share, f in zip(there, shares, scales, strict=True):
            weights[t] += share * f / norms[t]
        self.own_factors = weights
        return weights

    def _softmax(self, tasks: Sequence[int]) -> Vector:
        return list(softmax({t: self._logits.get(t, 0.0) for t in tasks}).values())

    def _fallen(self, losses: Tensor | None, soft: Vector) -> Vector:
        """Return how far the plain steps lowered each loss; 0 where that is not known."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or losses is None:
            return [0.0] * len(soft)
        fallen = [a - b for a, b in zip(losses.tolist(), ahead, strict=True)]
        fell = dot(soft, fallen)
        known = sum(s * abs(x) for s, x in zip(soft, losses.tolist(), strict=True))
        if not fell >= -0.01 * known and not self._warned:
            self._warned = True
            logger.warning(
                "aggregator.eta: %d plain steps of length %g raise the weighted sum of the losses "
                "(by %g), and should lower it; eta is too large for this model. This is said once",
                self.steps,
                self.eta,
                -fell,
            )
        return fallen if math.isfinite(fell) else [0.0] * len(soft)

    def _average(self, tasks: Sequence[int], shares: Vector) -> Vector:
        length = self.steps_per_epoch or (self.total_steps or 0) // 100
        epoch = self._step // max(1, length) if self.steps_per_epoch or self.total_steps else 0
        self._step += 1
        beta = (epoch + 1) ** -0.75
        mean = self._shares.of(tasks)
        mean = [m + beta * (s - m) for m, s in zip(mean, shares, strict=True)]
        self._shares.keep(tasks, mean)
        return mean

    def _learn(self, tasks: Sequence[int], slope: Vector) -> None:
        for t, x in zip(tasks, slope, strict=True):
            self._logits[t], self._moments[t] = adam_step(
                self._logits.get(t, 0.0), x, self._moments.get(t), self.lr
            )


def _corners(lacks: Vector) -> tuple[Matrix, Vector]:
    r"""Find the corners of what :math:`(w, \nu)` may be in the problem of :class:`FORUM`.

    They are each :math:`w_t = 1`, and each change of sign of :math:`w^\top \pi` on the way from one
    of those to another. Between them :math:`\nu` is as small as may be, and to be larger is never
    better.

    Args:
        lacks: Each :math:`\pi_t`, ``[n]``.

    Returns:
        Shares ``[k, n]`` and :math:`\nu`, ``[k]``, of the corners.
    """
    size = len(lacks)
    corners = [[float(k == t) for k in range(size)] for t in range(size)]
    for i in range(size):
        for j in range(size):
            if lacks[i] < 0.0 < lacks[j]:
                share = lacks[j] / (lacks[j] - lacks[i])
                corners.append([share * (k == i) + (1.0 - share) * (k == j) for k in range(size)])
    return corners, [max(x, 0.0) for x in lacks] + [0.0] * (len(corners) - size)
