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
    """A solver has not found the solution within its bound on steps."""


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    """Inner product of two vectors of equal length."""
    return sum(map(mul, a, b))


def correlation(gramian: Matrix) -> tuple[Matrix, Vector]:
    """Cosines ``C`` and norms ``n`` of the rows behind a Gramian; a zero row has cosine 0 to all.

    Args:
        gramian: ``[T, T]``, ``G = J Jᵀ``.

    Returns:
        ``C`` of shape ``[T, T]`` with unit diagonal and entries in [-1, 1], and ``n`` of shape
        ``[T]``.
    """
    norms = [math.sqrt(max(gramian[i][i], 0.0)) for i in range(len(gramian))]
    # Divided twice: the product of two norms may leave the range of a double.
    divisors = [n or math.inf for n in norms]
    cosines: Matrix = []
    for i, (row, n_i) in enumerate(zip(gramian, divisors, strict=True)):
        new = [g / n_i / n_j for g, n_j in zip(row, divisors, strict=True)]
        new[i] = 1.0
        if max(new) > 1.0 or min(new) < -1.0:
            new = [max(-1.0, min(1.0, c)) for c in new]
        cosines.append(new)
    return cosines, norms


def ridge(tasks: int, eps: float) -> float:
    """What is added to the diagonal of ``C`` so that rounding in it cannot make it indefinite.

    Args:
        tasks: ``T``.
        eps: Machine epsilon of the dtype that the Gramian was computed in.
    """
    return max(4.0 * tasks * eps, 1e-12)


def regularised(cosines: Matrix, eps: float) -> Matrix:
    """``C + ridge * I``."""
    shift = ridge(len(cosines), eps)
    result = [row[:] for row in cosines]
    for i, row in enumerate(result):
        row[i] += shift
    return result


def solve_spd(a: Matrix, *right: Sequence[float]) -> list[Vector]:
    """Solves ``A x = b`` for each right-hand side by one Cholesky factorisation.

    Args:
        a: ``[k, k]``, symmetric positive definite.
        right: Right-hand sides, each ``[k]``.
    """
    lower: Matrix = []
    for i, row in enumerate(a):
        new: Vector = []
        for j in range(i):
            done = lower[j]
            new.append((row[j] - dot(new, done)) / done[j])
        # No pivot of a regularised matrix is this small: rounding ate it.
        new.append(math.sqrt(max(row[i] - dot(new, new), 1e-13 * row[i])))
        lower.append(new)
    solutions = []
    for b in right:
        x: Vector = []
        for row, b_i in zip(lower, b, strict=True):
            x.append((b_i - dot(row, x)) / row[-1])  # `row` is longer than `x` by its diagonal
        for i in range(len(x) - 1, -1, -1):
            x[i] /= lower[i][i]
            x_i = x[i]
            row = lower[i]
            for j in range(i):
                x[j] -= row[j] * x_i
        solutions.append(x)
    return solutions


def nonnegative_qp(a: Matrix, b: Sequence[float], support: Collection[int] = ()) -> Vector:
    """Minimises ``½ xᵀ A x - bᵀ x`` over ``x ≥ 0``.

    Block principal pivoting (Júdice and Pires, 1994): guess the support, solve for it, move every
    variable that has the wrong sign; when that stops to help, move one at a time (Murty's rule),
    which ends for every positive definite ``A``.

    Args:
        a: ``[T, T]``, symmetric positive definite.
        b: ``[T]``.
        support: A guess of where the solution is positive, to start from.

    Returns:
        ``x`` of shape ``[T]``.

    Raises:
        NotConverged: After ``20 T + 20`` supports; no positive definite matrix did that so far.
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


def nash_bargaining(a: Matrix, tolerance: float = 1e-12, steps: int = 200) -> Vector:
    """The unique ``x > 0`` with ``x_i (A x)_i = 1``.

    That is the optimality condition of ``min ½ xᵀ A x - Σ log x_i``: strictly convex and
    self-concordant, so that the damped Newton method converges from everywhere without a line
    search.

    Args:
        a: ``[T, T]``, symmetric positive definite.
        tolerance: On the square of the Newton decrement.
        steps: Bound on the number of Newton steps.

    Returns:
        ``x`` of shape ``[T]``.

    Raises:
        NotConverged: After these steps; no positive definite matrix did that so far.
    """
    size = len(a)
    # Exact for a matrix with equal row sums.
    start = math.sqrt(size / max(sum(map(sum, a)), 1e-3 * size)) if size else 0.0
    x = [start] * size
    decrement = math.inf
    for _ in range(steps):
        inverse = [1.0 / x_i for x_i in x]
        gradient = [dot(row, x) - v for row, v in zip(a, inverse, strict=True)]
        hessian = [row[:] for row in a]
        for i, v in enumerate(inverse):
            hessian[i][i] += v * v
        (step,) = solve_spd(hessian, gradient)
        decrement = dot(step, gradient)
        damping = 1.0 / (1.0 + math.sqrt(max(decrement, 0.0))) if decrement > 0.0625 else 1.0
        x = [x_i - damping * s for x_i, s in zip(x, step, strict=True)]
        if decrement < tolerance:
            return x
    if decrement < 1e-6:  # as near as rounding lets it come, where the matrix is almost singular
        return x
    raise NotConverged(f"nash_bargaining: {steps} steps")
