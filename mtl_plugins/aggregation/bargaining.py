"""Solvers of Nash-MTL's and FairGrad's equations, on lists of floats as in :mod:`.solvers`."""

from __future__ import annotations

import math
from operator import mul

from mtl_plugins.aggregation.solvers import (
    Matrix,
    NotConverged,
    Vector,
    cholesky,
    dot,
    solve_spd,
    substitute,
)


def nash_bargaining(a: Matrix, steps: int = 100) -> Vector:
    """Find the unique ``x > 0`` with ``x_i (A x)_i = 1``, to a relative 1e-8.

    The equation is the optimality condition of ``min ½ xᵀ A x - Σ log x_i``, which is strictly
    convex and self-concordant. Far from the solution, take Newton's direction with an exact search
    along it: a fixed damping would take ten times as many steps where ``A`` is almost singular.
    Near the solution, take Chebyshev's method, which converges cubically: the third derivative is
    diagonal and costs one more substitution.

    Args:
        a: Matrix ``A``, ``[T, T]``, symmetric positive definite.
        steps: Bound on the number of Newton steps.

    Returns:
        The solution ``x``, ``[T]``.

    Raises:
        NotConverged: No solution in ``steps`` steps. With a diagonal that is 1e-10 above that of a
            positive semidefinite matrix, 30 are enough.
    """
    x = nash_guess(a)
    decrement = 1.0
    for _ in range(steps):
        product = [dot(row, x) for row in a]
        longer = math.sqrt(len(a) / dot(x, product)) if a else 1.0  # best multiple of x
        x = [longer * x_i for x_i in x]
        inverse = [1.0 / x_i for x_i in x]
        downhill = [v - longer * p for p, v in zip(product, inverse, strict=True)]
        # Rounding, where A is almost singular, keeps the error above that; the step from a
        # decrement this small does all that is to be done.
        if max(map(abs, map(mul, x, downhill)), default=0.0) < 1e-8 or decrement < 1e-5:
            return x
        hessian = [row[:] for row in a]
        for i, v in enumerate(inverse):
            hessian[i][i] += v * v
        lower = cholesky(hessian)
        step = substitute(lower, downhill)
        decrement = dot(step, downhill)
        ratios = list(map(mul, step, inverse))
        if decrement < 0.25:
            bend = substitute(lower, [r * r * v for r, v in zip(ratios, inverse, strict=True)])
            near = [x_i + s + b for x_i, s, b in zip(x, step, bend, strict=True)]
            if min(near) > 0.0:
                x = near
                continue
        # xᵀ A s = Σ s_i / x_i - downhill · s
        curvature = dot(step, [dot(row, step) for row in a])
        length = best_length(curvature, sum(ratios) - decrement, ratios, decrement)
        x = [x_i + length * s for x_i, s in zip(x, step, strict=True)]
    raise NotConverged(f"nash_bargaining: {steps} steps")


def nash_guess(a: Matrix) -> Vector:
    """Solve :func:`nash_bargaining` up to scale for a matrix with equal row sums.

    For other matrices the result is one Newton step from equal entries, for the mean of ``A`` over
    all permutations of the tasks, a matrix that is inverted at no cost.

    Args:
        a: Matrix ``A``, ``[T, T]``, symmetric positive definite.
    """
    size = len(a)
    sums = list(map(sum, a))
    total = max(sum(sums), 1e-3 * size)
    trace = sum(row[i] for i, row in enumerate(a))
    off_diagonal = (total - trace) / max(size * (size - 1), 1)
    mean = total / max(size, 1)
    ratios = [(mean - r) / (trace / size - off_diagonal + mean) for r in sums]
    return [1.0 + r if r > 0.0 else 1.0 / (1.0 - r) for r in ratios]


def best_length(quadratic: float, linear: float, ratios: Vector, decrement: float) -> float:
    """Minimise ``½ q a² + l a - Σ log(1 + a r_i)`` over ``a > 0`` by damped Newton steps.

    Args:
        quadratic: Factor ``q``, not negative.
        linear: Factor ``l``.
        ratios: Vector ``r``.
        decrement: Minus the slope at 0, and the curvature there.
    """
    length = 1.0 / (1.0 + math.sqrt(decrement))
    for _ in range(20):
        terms = [r / (1.0 + length * r) for r in ratios]
        slope = quadratic * length + linear - sum(terms)
        curvature = quadratic + dot(terms, terms)
        size = abs(slope) / math.sqrt(curvature)
        length -= slope / curvature / (1.0 + size)
        if size < 0.1:  # nothing is gained by more: the next direction is another
            break
    return length


def fair_allocation(a: Matrix, c: Vector, power: float, steps: int = 100) -> Vector:
    """Find the unique ``x > 0`` with ``x_i^p (A x)_i = c_i``.

    The equation is the optimality condition of ``min ½ xᵀ A x - Σ c_i ∫ x_i^{-p}``, which is
    strictly convex; with ``p = 1`` and ``c = 1`` it is :func:`nash_bargaining`. Newton's method on
    ``x_i`` relative to itself, with a search along each direction.

    Args:
        a: Matrix ``A``, ``[T, T]``, symmetric positive definite, with a diagonal of about 1.
        c: Right-hand sides ``[T]``, positive.
        power: Exponent ``p``, positive.
        steps: Bound on the number of Newton steps.

    Returns:
        The solution ``x``, ``[T]``.

    Raises:
        NotConverged: No solution in ``steps`` steps, or numbers beyond a double.
    """
    try:
        x = [c_i ** (1.0 / (1.0 + power)) for c_i in c]  # the solution for A = I
        for _ in range(steps):
            product = [dot(row, x) for row in a]
            wanted = [c_i * x_i ** (1.0 - power) for c_i, x_i in zip(c, x, strict=True)]
            # Best multiple of x.
            longer = (sum(wanted) / dot(x, product)) ** (1.0 / (1.0 + power))
            x = [longer * x_i for x_i in x]
            wanted = [w * longer ** (1.0 - power) for w in wanted]
            have = [longer * p * x_i for p, x_i in zip(product, x, strict=True)]
            downhill = [w - h for w, h in zip(wanted, have, strict=True)]
            if all(abs(d) <= 1e-9 * w for d, w in zip(downhill, wanted, strict=True)):
                return x
            hessian = [
                [x_i * g * x_j for g, x_j in zip(r, x, strict=True)]
                for x_i, r in zip(x, a, strict=True)
            ]
            for i, w in enumerate(wanted):
                hessian[i][i] += power * w
            (ratios,) = solve_spd(hessian, downhill)
            step = [r * x_i for r, x_i in zip(ratios, x, strict=True)]
            if max(map(abs, ratios)) <= 1e-6:  # and the square, what is left then, is rounding
                return [x_i + s for x_i, s in zip(x, step, strict=True)]
            curvature = dot(step, [dot(row, step) for row in a])
            length = _power_length(curvature, dot(ratios, have), ratios, wanted, power)
            x = [x_i + length * s for x_i, s in zip(x, step, strict=True)]
    except (OverflowError, ZeroDivisionError) as error:
        raise NotConverged("fair_allocation: numbers beyond a double") from error
    raise NotConverged(f"fair_allocation: {steps} steps")


def _power_length(
    quadratic: float, linear: float, ratios: Vector, weights: Vector, power: float
) -> float:
    """Find the zero of ``q t + l - Σ w_i r_i (1 + t r_i)^{-p}`` over ``t > 0``, roughly.

    The function increases; the zero is in a bracket that a Newton step may not leave.
    """
    low, high = 0.0, min((-1.0 / r for r in ratios if r < 0.0), default=math.inf)
    length = min(1.0, 0.5 * high)
    first = 0.0
    for _ in range(30):
        terms = [w * r * (1.0 + length * r) ** -power for r, w in zip(ratios, weights, strict=True)]
        slope = quadratic * length + linear - sum(terms)
        first = first or abs(linear - dot(ratios, weights))
        if abs(slope) <= 0.1 * first:  # nothing is gained by more: the next direction is another
            break
        low, high = (length, high) if slope < 0.0 else (low, length)
        growth = quadratic + power * sum(
            t * r / (1.0 + length * r) for t, r in zip(terms, ratios, strict=True)
        )
        length -= slope / growth
        if not low < length < high:
            length = 0.5 * (low + high) if high < math.inf else 2.0 * low
    return length
