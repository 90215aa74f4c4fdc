"""CAGrad: near the mean gradient, the direction that helps the worst task most."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from mtl_plugins.aggregation.base import GramianAggregator
from mtl_plugins.aggregation.solvers import (
    Matrix,
    Vector,
    correlation,
    dot,
    nonnegative_qp,
    regularised,
    ridge,
    solve_spd,
)


class CAGrad(GramianAggregator):
    r"""Conflict-averse gradient descent (Liu et al. 2021, eq. 3 and algorithm 1).

    Paper: `arXiv 2110.14048 <https://arxiv.org/abs/2110.14048>`_.

    .. math:: \max_d \min_t g_t \cdot d \quad \text{s.t.} \quad \|d - g_0\| \le c \|g_0\|,
              \qquad g_0 = \tfrac1T \sum_t g_t

    The dual is :math:`\min_{w \in \Delta} g_w \cdot g_0 + c \|g_0\| \|g_w\|` with the update
    :math:`d = g_0 + c \|g_0\| g_w / \|g_w\|`. We solve the primal, see :func:`improve_worst`, since
    the dual has no gradient where :math:`g_w = 0`. That happens when some convex combination of the
    task gradients vanishes (a Pareto stationary point): no ``d`` then helps every task, and the
    update is the one closest to :math:`g_0` that harms none, if that is within the radius.

    Args:
        c: Radius, relative to ``‖g_0‖``. 0 is the mean; at 1 or above no task gets worse.
        rescale: Divisor of ``d``: 1 (``0``), ``1 + c²`` (``1``) or ``1 + c`` (``2``).
    """

    scale = "mean"

    def __init__(self, c: float = 0.4, rescale: int = 1) -> None:
        if c < 0.0:
            raise ValueError(f"c is not negative, got {c}")
        if rescale not in (0, 1, 2):
            raise ValueError(f"rescale is 0, 1 or 2, got {rescale!r}")
        self.c = c
        self.rescale = rescale

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        size = len(gramian)
        divisor = (1.0, 1.0 + self.c**2, 1.0 + self.c)[self.rescale]
        cosines, norms = correlation(gramian)
        longest = max(norms)
        if longest == 0.0 or self.c == 0.0:
            return [1.0 / size / divisor] * size
        share = [n / longest / size for n in norms]  # g_0 in terms of the unit task gradients
        towards = [dot(row, share) for row in cosines]
        length = math.sqrt(max(dot(share, towards), 0.0))
        if length <= size * eps:  # g_0 is rounding: no direction to start from
            return [1.0 / size / divisor] * size
        # A zero row cannot be improved, and has no direction to take part with.
        active = [t for t in range(size) if norms[t] > 0.0]
        u = improve_worst(
            [towards[t] / length for t in active],
            [[cosines[s][t] for t in active] for s in active],
            [norms[t] for t in active],
            self.c,
            eps,
            at_most_zero=len(active) < size,
        )
        weights = [1.0 / size / divisor] * size
        for t, u_t in zip(active, u, strict=True):  # u is for unit gradients and ‖g_0‖ = 1
            weights[t] += u_t * length * (longest / norms[t]) / divisor
        return weights


def improve_worst(
    towards: Vector,
    cosines: Matrix,
    norms: Vector,
    radius: float,
    eps: float,
    at_most_zero: bool = False,
) -> Vector:
    """Find the step that raises ``min_t g_t · d`` most, with ``d = g_0 + Σ u_t g_t / ‖g_t‖``.

    For a level ``μ``, the ``d`` closest to ``g_0`` with ``g_t · d ≥ μ`` for every t is found by a
    nonnegative quadratic program. Its distance to ``g_0`` is convex in ``μ``, and on each support
    of ``u`` its square is a quadratic, which tells exactly the ``μ`` where the distance is the
    radius: a few programs, one on each support that is passed.

    Args:
        towards: Cosines ``[T]`` with the mean, ``g_t · g_0 / (‖g_t‖ ‖g_0‖)``.
        cosines: Cosines ``[T, T]`` of the task gradients.
        norms: Norms ``[T]``, ``‖g_t‖``.
        radius: Largest length of the step, in units of ``‖g_0‖``.
        eps: Relative rounding of the cosines.
        at_most_zero: Whether some task cannot improve, so that no level above 0 is worth a step.

    Returns:
        The coefficients ``u``, ``[T]``, not negative, in units of ``‖g_0‖``.
    """
    a = regularised(cosines, eps)
    shortest = min(norms)
    # g_t · d ≥ μ in terms of unit gradients, in units of the shortest.
    b = [shortest / n for n in norms]

    def closest(level: float, support: Sequence[int]) -> tuple[Vector, list[int], float]:
        right = [level * b_t - t for b_t, t in zip(b, towards, strict=True)]
        u = nonnegative_qp(a, right, support)
        # At the optimum, uᵀ A u = uᵀ right.
        return u, [i for i, u_t in enumerate(u) if u_t > 0.0], math.sqrt(max(dot(u, right), 0.0))

    def level_at_radius(support: Sequence[int]) -> float:
        sub = [[a[i][j] for j in support] for i in support]
        b_s, t_s = [b[i] for i in support], [towards[i] for i in support]
        p, r = solve_spd(sub, b_s, t_s)
        # uᵀ A u = μ² bᵀp - 2 μ tᵀp + tᵀr on this support
        quadratic, linear = dot(b_s, p), dot(t_s, p)
        root = linear * linear - quadratic * (dot(t_s, r) - radius * radius)
        return (linear + math.sqrt(max(root, 0.0))) / quadratic

    # Far out, the support is that of the shortest vector in the hull (MGDA).
    support = [i for i, u_t in enumerate(nonnegative_qp(a, b)) if u_t > 0.0]
    below, above = min(t / b_t for t, b_t in zip(towards, b, strict=True)), math.inf
    level, u = below, [0.0] * len(b)  # g_0 itself
    for _ in range(60):
        level = level_at_radius(support)
        if not below < level < above:
            if above == math.inf:  # rounding: the level found before is as good
                break
            level = (below + above) / 2.0
        u, found, distance = closest(level, support)
        if abs(distance - radius) <= 1e-13 * radius:
            break
        if distance < radius:
            below = level
        else:
            above = level
        # An empty support means that g_0 itself reaches this level.
        support = found or support
    at_most_zero |= ridge(len(a), eps) * dot(u, u) > 0.1 * radius * radius
    return closest(0.0, support)[0] if at_most_zero and level > 0.0 else u
