"""Measures of how much tasks interfere, from their gradients (paper C, sections 5 and 6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mtl_plugins.registry import suggest

if TYPE_CHECKING:
    from mtl_plugins.step import Step

GRADIENT_MEASURES = ("gds", "gms", "angles")
"""Measures that are read from the Gramian of the task gradients."""

MEASURES = (*GRADIENT_MEASURES, "fd")
"""All measures that can be asked for in a config."""


def gradient_direction_similarity(gramian: Tensor) -> Tensor:
    """Compute GDS, the mean cosine of two task gradients (C eq. 6).

    Args:
        gramian: Gramian ``[T, T]``. A zero row has the cosine 0 to all others.

    Returns:
        A scalar in [-1, 1], same dtype and device; NaN for fewer than two tasks.
    """
    return _mean_off_diagonal(_cosines(gramian))


def pairwise_angles(gramian: Tensor) -> Tensor:
    """Compute the angles between the task gradients (B fig. 1).

    Args:
        gramian: Gramian ``[T, T]``. A zero row is at 90 degrees to all others.

    Returns:
        The angles ``[T, T]`` in degrees, in [0, 180], same dtype and device.
    """
    return _cosines(gramian).arccos().rad2deg()


def gradient_magnitude_similarity(gramian: Tensor) -> Tensor:
    """Compute GMS, the mean of ``2 ‖g_i‖ ‖g_j‖ / (‖g_i‖² + ‖g_j‖²)`` (C eq. 7).

    Args:
        gramian: Gramian ``[T, T]``. Two zero rows have similarity 1, a zero row and another 0.

    Returns:
        A scalar in [0, 1], same dtype and device; NaN for fewer than two tasks.
    """
    norms = gramian.diagonal().clamp(min=0.0).sqrt()
    ratio = torch.minimum(norms[:, None], norms) / torch.maximum(norms[:, None], norms)
    ratio = ratio.nan_to_num(1.0)
    return _mean_off_diagonal(2.0 * ratio / (1.0 + ratio**2))


def feature_disentanglement(gradients: Tensor) -> Tensor:
    """Compute FD: how evenly tasks care about one location of a representation (C eq. 8 and 9).

    Args:
        gradients: Gradients ``∂L_t/∂Z``, ``[T, ...]``.

    Returns:
        The mean entropy over locations, a scalar in [0, log T]: 0 when every location matters to
        one task only. Locations that matter to no task are left out; NaN if none remains.
    """
    total, count = entropies(gradients)
    return total / count


def entropies(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum behind :func:`feature_disentanglement` and the number of its terms.

    Args:
        gradients: Gradients ``∂L_t/∂Z``, ``[T, ...]``.

    Returns:
        Two scalars.
    """
    saliency = gradients.flatten(1).abs()
    largest = saliency.amax(dim=0)
    matters = largest > 0.0
    saliency = saliency / torch.where(matters, largest, 1.0)  # a sum of tiny numbers could vanish
    share = saliency / torch.where(matters, saliency.sum(dim=0), 1.0)
    return torch.special.entr(share).sum(), matters.sum().to(share)


def check_measures(measures: Sequence[str], key: str) -> None:
    """Refuse whatever is not a list of :data:`MEASURES`.

    Args:
        measures: Names of measures.
        key: Config key of the measures, for the error message.

    Raises:
        TypeError: ``measures`` is a string, not a list.
        ValueError: A name is not among :data:`MEASURES`.
    """
    if isinstance(measures, str):
        raise TypeError(f"{key}: expected a list, got {measures!r}")
    for measure in measures:
        if measure not in MEASURES:
            raise ValueError(f"{key}: {measure!r} is none; {suggest(measure, MEASURES)}")


def scalars_of(step: Step, measures: Sequence[str], fallbacks: int) -> dict[str, float]:
    """Return the scalars of a step, by the names under which both adapters log them.

    Args:
        step: The step taken last.
        measures: Names among :data:`MEASURES`; a measure that the step did not compute is left out.
        fallbacks: Number of times that the solver of the aggregator did not converge.
    """
    scalars = dict(zip((f"mtl/loss/{t}" for t in step.tasks), step.losses.tolist(), strict=True))
    if step.weights is not None:
        for task, weight in zip(step.tasks, step.weights.tolist(), strict=True):
            scalars[f"mtl/weight/{task}"] = weight
    scalars |= {f"mtl/{name}": value for name, value in _measured(step, measures)}
    if step.penalty is not None:
        scalars["mtl/penalty"] = float(step.penalty)
    if fallbacks:
        scalars["mtl/fallbacks"] = fallbacks
    return scalars


def _measured(step: Step, measures: Sequence[str]) -> Iterator[tuple[str, float]]:
    if step.disentanglement is not None:
        yield "fd", float(step.disentanglement)
    gramian, tasks = step.gramian, step.tasks
    if gramian is None or not gramian.isfinite().all() or len(tasks) < 2:
        return
    if "gds" in measures:
        yield "gds", float(gradient_direction_similarity(gramian))
    if "gms" in measures:
        yield "gms", float(gradient_magnitude_similarity(gramian))
    if "angles" in measures:
        angles = pairwise_angles(gramian).tolist()
        for i, j in combinations(range(len(tasks)), 2):
            yield f"angle/{tasks[i]}|{tasks[j]}", angles[i][j]


def _cosines(gramian: Tensor) -> Tensor:
    norms = gramian.diagonal().clamp(min=0.0).sqrt()
    # Divided twice: the product of two norms may leave the range of the dtype.
    cosines = (gramian / norms[:, None] / norms[None, :]).nan_to_num(0.0, 0.0, 0.0)
    return cosines.clamp(-1.0, 1.0)


def _mean_off_diagonal(matrix: Tensor) -> Tensor:
    tasks = len(matrix)
    off = ~torch.eye(tasks, dtype=torch.bool, device=matrix.device)
    return matrix[off].mean()
