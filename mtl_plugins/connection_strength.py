r"""Connection strength: how much each output channel of a shared convolution serves each task.

The arithmetic of phase 2 of connection strength-based optimization: channels go to the task that
they serve most, and gradients of other tasks that conflict with that task's are projected. For a
convolution with the weights W that feeds one batch norm a task,

.. math:: S^t_p = \frac{\gamma_{t,p}^2}{\sigma_{t,p}^2 + \epsilon} \sum_{q,k} W_{p,q,k}^2,
          \qquad \hat S^t_p = S^t_p / \sum_p S^t_p

with the running variance of the norm. The constant 1/K² of a K × K kernel cancels.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from mtl_plugins.task_norm import TaskBatchNorm, TaskNorm

EPS = 1e-5

OneTop = Literal["project", "sum"]


def connection_strength(weight: Tensor, scale: Tensor, variance: Tensor) -> Tensor:
    """Measure the strength S of the output channels of a convolution for each task.

    Args:
        weight: Weights ``[C, ...]`` of the convolution, output channels first.
        scale: Scales ``[T, C]`` of the tasks' batch norms.
        variance: Running variances ``[T, C]`` of the tasks' batch norms.

    Returns:
        Strengths ``[T, C]`` in double precision.
    """
    power = weight.detach().double().flatten(1).square().sum(1)
    return power * scale.detach().double().square() / (variance.double() + EPS)


def normalise(strength: Tensor) -> Tensor:
    """Divide the strengths by their sum over the channels.

    Args:
        strength: Strengths ``[T, C]``.

    Returns:
        Shares ``[T, C]``; those of a task sum to 1. Where all strengths of a task are 0, as with
        norms that start at a scale of 0, no channel is before another: each has ``1 / C``.
    """
    total = strength.sum(1, keepdim=True)
    return torch.where(total > 0, strength / total, 1 / strength.shape[1])


def variances(norm: TaskBatchNorm) -> Tensor:
    """Return the running variances ``[T, C]`` of a norm, tasks in the order of the norm's.

    Raises:
        ValueError: The norm keeps no running variance.
    """
    norms: list[Any] = list(norm.norms.values())
    if any(one.running_var is None for one in norms):
        raise ValueError(
            "connection strength needs the running variance of each norm, and one has "
            "track_running_stats=False"
        )
    return torch.stack([one.running_var for one in norms])


def shares(norm: TaskBatchNorm, variance: Tensor | None = None) -> Tensor:
    """Measure the normalised strength of the channels of the convolution that feeds a norm.

    Args:
        norm: Task-specific norm.
        variance: Running variances ``[T, C]`` to take; None for the norm's own.

    Returns:
        Shares ``[T, C]``, tasks in the order of the norm's.

    Raises:
        ValueError: The norm keeps no running variance.
    """
    variance = variances(norm) if variance is None else variance
    norms: list[Any] = list(norm.norms.values())
    scale = torch.stack(
        [torch.ones_like(one.running_var) if one.weight is None else one.weight for one in norms]
    )
    weight: Any = norm.conv.weight
    return normalise(connection_strength(outputs_first(norm.conv, weight), scale, variance))


def top_tasks(share: Tensor) -> Tensor:
    """Find the task with the top priority for each channel; the first one of equals.

    Args:
        share: Shares ``[T, C]``.

    Returns:
        Numbers ``[C]`` of the tasks.
    """
    return share.argmax(0)


def project_groups(gradients: Tensor, top: Tensor, one_top: OneTop = "project") -> Tensor:
    """Project the gradients that conflict with the top task's in its channels, and sum them.

    Each group of channels with the same top task is one vector: a gradient conflicts if its dot
    product with the top task's gradient over the whole group is negative. The top task's gradient
    is never changed.

    Args:
        gradients: Gradients ``[T, C, ...]`` of the tasks with respect to the weights of a
            convolution, output channels first.
        top: Number ``[C]`` of each channel's top task.
        one_top: ``"project"`` as in the paper's algorithm 1; ``"sum"`` leaves a layer whose
            channels all have the same top task alone, as the published code does.

    Returns:
        The update ``[C, ...]``.

    Raises:
        ValueError: ``one_top`` has another value.
    """
    if one_top not in ("project", "sum"):
        raise ValueError(f"one_top must be 'project' or 'sum', got {one_top!r}")
    tasks, channels = gradients.shape[:2]
    # In double precision, the square of a tiny gradient is not zero.
    rows = gradients.double().flatten(2)
    group = (top[:, None] == torch.arange(tasks, device=top.device)).double()  # [C, T]
    reference = rows[top, torch.arange(channels, device=top.device)]
    products = (rows * reference).sum(2) @ group  # [tasks, groups]
    squares = reference.square().sum(1) @ group
    conflicts = (products < 0) & (squares > 0)
    if one_top == "sum":
        conflicts &= (top != top[0]).any()
    factors = torch.where(conflicts, products / squares, 0.0).sum(0)
    # All projections of a group are along the same reference: subtract them at once.
    update = rows.sum(0) - factors[top].unsqueeze(1) * reference
    return update.reshape(gradients.shape[1:]).to(gradients.dtype)


def outputs_first(conv: nn.Module, weight: Tensor) -> Tensor:
    """Swap input and output channels of a transposed convolution's weights, there and back."""
    if not isinstance(conv, _ConvTransposeNd):
        return weight
    return weight.unflatten(0, (conv.groups, -1)).transpose(1, 2).flatten(0, 1)


def top_channels(norm: TaskNorm) -> dict[str, float]:
    """Measure how many of all paired output channels each task has the top priority for.

    Args:
        norm: Task-specific norms of the model.

    Returns:
        Share in [0, 1] by task; none if the norms keep no running variance.
    """
    layers = list(norm.norms.values())
    if any(one.running_var is None for layer in layers for one in layer.norms.values()):
        return {}
    top = torch.cat([top_tasks(shares(layer)) for layer in layers])
    counts = torch.bincount(top, minlength=len(norm.tasks)) / len(top)
    return dict(zip(norm.tasks, counts.tolist(), strict=True))
