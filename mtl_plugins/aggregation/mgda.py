"""MGDA: the shortest vector in the convex hull of the task gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from mtl_plugins.aggregation.base import GramianAggregator
from mtl_plugins.aggregation.solvers import (
    Matrix,
    Vector,
    correlation,
    nonnegative_qp,
    regularised,
)

Normalization = Literal["none", "l2", "loss", "loss+"]
Update = Literal["plain", "normalised"]


class MGDA(GramianAggregator):
    r"""Multiple-gradient descent (Désidéri 2012; Sener and Koltun 2018, eq. 3).

    Paper: `arXiv 1810.04650 <https://arxiv.org/abs/1810.04650>`_.

    .. math:: w = \arg\min_{w \in \Delta} w^\top G w, \qquad d = J^\top w

    Solved exactly. With ``u_t ∝ w_t ‖g_t‖`` the problem is homogeneous, so that its minimiser is,
    up to scale, the one of ``½ uᵀ C u - Σ u_t / ‖g_t‖`` over ``u ≥ 0``.

    Args:
        normalization: Divisor of ``g_t`` where the weights are found: ``"none"``: 1; ``"l2"``:
            ``‖g_t‖``; ``"loss"``: ``L_t``; ``"loss+"``: ``L_t ‖g_t‖``.
        update: Gradients that the weights then apply to: ``"plain"``, as they are, or
            ``"normalised"``, as in LibMTL.
    """

    scale = "mean"

    def __init__(self, normalization: Normalization = "none", update: Update = "plain") -> None:
        if normalization not in get_args(Normalization):
            raise ValueError(
                f"normalization is one of {get_args(Normalization)}, got {normalization!r}"
            )
        if update not in get_args(Update):
            raise ValueError(f"update is one of {get_args(Update)}, got {update!r}")
        self.normalization = normalization
        self.update = update

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        cosines, norms = correlation(gramian)
        lengths = norms
        if self.normalization in ("l2", "loss+"):
            norms = [1.0 if n else 0.0 for n in norms]
        if self.normalization in ("loss", "loss+"):
            if losses is None:
                raise ValueError(f"normalization={self.normalization!r} needs the loss values")
            # A loss may reach 0, or be negative by design; the divisor is its size.
            norms = [
                n / max(abs(loss), 1e-12) for n, loss in zip(norms, losses.tolist(), strict=True)
            ]
        if min(norms) == 0.0:  # the hull contains 0: any weights on the zero rows are optimal
            zeros = norms.count(0.0)
            return [1.0 / zeros if n == 0.0 else 0.0 for n in norms]
        shortest = min(norms)
        inverse = [shortest / n for n in norms]
        u = nonnegative_qp(regularised(cosines, eps), inverse)
        weights = [u_t * b for u_t, b in zip(u, inverse, strict=True)]
        total = sum(weights)
        if self.update == "normalised":  # by n of each normalised gradient per length
            weights = [w * n / length for w, n, length in zip(weights, norms, lengths, strict=True)]
        return [w / total for w in weights]
