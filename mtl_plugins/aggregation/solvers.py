"""Exact solvers for the small convex problems behind the Gramian aggregators.

``T`` is the number of tasks, rarely above 16. At that size an operation on a tensor costs more in
dispatch than in arithmetic, so the solvers work on lists of Python floats (IEEE double): for seven
tasks they take some tens of microseconds.

All of them work on the *correlation* matrix ``C_ij = G_ij / (n_i n_j)`` with ``n_i = ‖g_i‖``: each
cosine is known to a relative error whatever the norms are, so that gradients whose norms are 1e20
apart are no harder than equal ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from operator import mul

Vector = list[float]
Matrix = list[list[float]]


class NotConverged(ArithmeticError):
    """Error of a solver that has not found the solution within its bound on steps."""


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the inner product of two vectors of equal length."""
    return sum(map(mul, a, b))


def correlation(gramian: Matrix) -> tuple[Matrix, Vector]:
    """Find cosines ``C`` and norms ``n`` of the rows behind a Gramian; zero rows have cosine 0.

    Args:
        gramian: Gramian ``G = J Jᵀ``, ``[T, T]``.

    Returns:
        The cosines ``C``, ``[T, T]``, with unit diagonal and entries in [-1, 1], and the norms
        ``n``, ``[T]``.
    """
    norms = [math.sqrt(max(row[i], 0.0)) for i, row in enumerate(gramian)]
    # Divide by one norm after the other: their product may leave the range of a double.
    factors = [1.0 / n if n else 0.0 for n in norms]
    cosines: Matrix = []
    for i, (row, f) in enumerate(zip(gramian, factors, strict=True)):
        new = list(map(mul, map(f.__mul__, row), factors))
        new[i] = 1.0
        if max(new) > 1.0 or min(new) < -1.0:
            new = [max(-1.0, min(1.0, c)) for c in new]
        cosines.append(new)
    return cosines, norms


def ridge(tasks: int, eps: float, least: float = 1e-12) -> float:
    """Return the addition to the diagonal of ``C`` that keeps it definite despite rounding.

    Args:
        tasks: Number ``T`` of tasks.
        eps: Machine epsilon of the dtype that the Gramian was computed in.
        least: Smallest value to return, for a solver whose own rounding asks for more.
    """
    return max(4.0 * tasks * eps, least)


def regularised(cosines: Matrix, eps: float, least: float = 1e-12) -> Matrix:
    """Return ``C + ridge * I``."""
    shift = ridge(len(cosines), eps, least)
    result = [row[:] for row in cosines]
    for i, row in enumerate(result):
        row[i] += shift
    return result


def cholesky(a: Matrix) -> Matrix:
    """Find the lower triangle ``L`` with ``L Lᵀ = A``, row by row up to the diagonal.

    Args:
        a: Matrix ``A``, ``[k, k]``, symmetric positive definite.
    """
    lower: Matrix = []
    for i, row in enumerate(a):
        new: Vector = []
        for j, done in enumerate(lower):
            new.append((row[j] - sum(map(mul, new, done))) / done[j])
        # No pivot of a regularised matrix is this small, except by rounding.
        new.append(math.sqrt(max(row[i] - sum(map(mul, new, new)), 1e-13 * row[i])))
        lower.append(new)
    return lower


def substitute(lower: Matrix, b: Sequence[float]) -> Vector:
    """Solve ``L Lᵀ x = b``.

    Args:
        lower: Lower triangle ``L`` from :func:`cholesky`.
        b: Right-hand side ``[k]``.
    """
    x: Vector = []
    for row, b_i in zip(lower, b, strict=True):
        x.append((b_i - sum(map(mul, row, x))) / row[-1])  # `row` is longer by its diagonal
    for i in range(len(x) - 1, -1, -1):
        row = lower[i]
        x_i = x[i] = x[i] / row[i]
        for j in range(i):
            x[j] -= row[j] * x_i
    return x


def solve_spd(a: Matrix, *right: Sequence[float]) -> list[Vector]:
    """Solve ``A x = b`` for each right-hand side by one Cholesky factorisation.

    Args:
        a: Matrix ``A``, ``[k, k]``, symmetric positive definite.
        right: Right-hand sides, each ``[k]``.
    """
    lower = cholesky(a)
    return [substitute(lower, b) for b in right]


def nonnegative_qp(a: Matrix, b: Sequence[float], support: Collection[int] = ()) -> Vector:
    """Minimise ``½ xᵀ A x - bᵀ x`` over ``x ≥ 0``.

    Block principal pivoting (Júdice and Pires, 1994): guess the support, solve for it, move every
    variable that has the wrong sign; when that stops to help, move one at a time (Murty's rule),
    which ends for every positive definite ``A``.

    Args:
        a: Matrix ``A``, ``[T, T]``, symmetric positive definite.
        b: Vector ``[T]``.
        support: Guess of where the solution is positive, to start from.

    Returns:
        The minimiser ``x``, ``[T]``.

    Raises:
        NotConverged: No solution in ``20 T + 20`` supports, which no positive definite matrix has
            needed so far.
    """
    size = len(b)
    # From x = 0, the first step would be to where the gradient is negative.
    inside = [i in support for i in range(size)] if support else [b_i > 0.0 for b_i in b]
    fewest, patience = size + 1, 3
    x = [0.0] * size
    # Murty's rule visits each of 2^T supports at most once; in practice a few are visited.
    for _ in range(20 * size + 20):
        index = [i for i in range(size) if inside[i]]
        x = [0.0] * size
        if index:
            sub = [[a[i][j] for j in index] for i in index]
            (values,) = solve_spd(sub, [b[i] for i in index])
            for i, value in zip(index, values, strict=True):
                x[i] = value
        tolerance = 1e-14 * size * max(map(abs, x))
        wrong = [
            i
            for i in range(size)
            if (x[i] < 0.0 if inside[i] else dot(a[i], x) - b[i] < -tolerance)
        ]
        if not wrong:
            return x
        if len(wrong) < fewest:
            fewest, patience = len(wrong), 3
        elif patience:
            patience -= 1
        else:
            wrong = wrong[-1:]
        for i in wrong:
            inside[i] = not inside[i]
    raise NotConverged("nonnegative_qp: too many supports")


def simplex_qp(a: Matrix, b: Sequence[float], lengths: Sequence[float], eps: float) -> Vector:
    """Minimise ``xᵀ A x - bᵀ x`` over the probability simplex.

    Active sets: from the best corner on, go to the minimiser of the present support, drop what
    would become negative on the way, add what would lower the value most.

    Args:
        a: Matrix ``A``, ``[k, k]``, symmetric and positive semidefinite up to rounding.
        b: Vector ``[k]``.
        lengths: Positive numbers ``n``, ``[k]``, so that the rounding of ``A_ij`` is of the size
            ``eps n_i n_j``; for inner products of vectors their norms.
        eps: Relative rounding.

    Returns:
        The minimiser ``x``, ``[k]``; of several nearly the shortest.

    Raises:
        NotConverged: No solution in ``20 k + 20`` supports.
    """
    size = len(b)
    least = min(lengths)
    inverse = [1.0 / n for n in lengths]
    # On the simplex the products with the ones are constant: they change nothing, and make the
    # matrix definite where it is so along the simplex alone.
    shift, ones = ridge(size, eps), [least * f for f in inverse]
    scaled = [
        [2.0 * (x * f * g + u * v) for x, g, v in zip(row, inverse, ones, strict=True)]
        for row, f, u in zip(a, inverse, ones, strict=True)
    ]
    for i, row in enumerate(scaled):
        row[i] += 2.0 * shift
    gains = list(map(mul, b, inverse))
    first = min(range(size), key=lambda i: a[i][i] - b[i])
    support = [first]
    x = [0.0] * size
    x[first] = 1.0 / inverse[first]
    for _ in range(20 * size + 20):
        sub = [[scaled[i][j] for j in support] for i in support]
        inner = [inverse[i] for i in support]
        free, pull = solve_spd(sub, [gains[i] for i in support], inner)
        level = (1.0 - dot(inner, free)) / dot(inner, pull)
        wanted = {i: f + level * p for i, f, p in zip(support, free, pull, strict=True)}
        # The way to there ends where the first entry would become negative.
        ends = [(x[i] / (x[i] - v), i) for i, v in wanted.items() if v < 0.0]
        share, leaves = min(ends, default=(1.0, None))
        for i, v in wanted.items():
            x[i] += share * (v - x[i])
        if leaves is not None:
            x[leaves] = 0.0
            support.remove(leaves)
            continue
        slopes = [
            dot(row, x) - gain - level * f
            for row, gain, f in zip(scaled, gains, inverse, strict=True)
        ]
        tolerance = 1e-12 * size * (max(map(abs, x)) + max(map(abs, gains)))
        outside = [i for i in range(size) if i not in support and slopes[i] < -tolerance]
        if not outside:
            return [x_i * f for x_i, f in zip(x, inverse, strict=True)]
        support.append(min(outside, key=slopes.__getitem__))
    raise NotConverged("simplex_qp: too many supports")


def on_simplex(v: Sequence[float]) -> Vector:
    """Return the point of the probability simplex that is closest to ``v``.

    Args:
        v: Vector ``[T]``.
    """
    total, shift = 0.0, 0.0
    for count, value in enumerate(sorted(v, reverse=True), start=1):
        total += value
        if value > (total - 1.0) / count:
            shift = (total - 1.0) / count
    return [max(value - shift, 0.0) for value in v]
