"""Sequential updates: one step of the optimizer for each task in turn, on the same batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtl_plugins.aggregation import Aggregator
from mtl_plugins.distributed import average_grads, with_grad
from mtl_plugins.regularization import Regularizer
from mtl_plugins.report import Report
from mtl_plugins.transfer import HostCopy
from mtl_plugins.weighting import Weighting
from mtl_plugins.window import Window


def check_turns(
    aggregator: Aggregator, weighting: Weighting | None, regularizer: Regularizer | None
) -> None:
    """Refuse what needs the losses of all tasks at the same weights.

    Raises:
        ValueError: The weighting or the regulariser needs them.
    """
    name = type(aggregator).__name__
    if regularizer is not None:
        raise ValueError(
            f"regularizer: {type(regularizer).__name__} compares the gradients of the tasks, and "
            f"{name} takes them one by one, at different weights"
        )
    if weighting is not None and (
        weighting.needs_losses or weighting.needs_norms or weighting.needs_new_losses
    ):
        raise ValueError(
            f"weighting: {type(weighting).__name__} weighs the tasks by losses or gradients at the "
            f"same weights of the model, and {name} takes one task after the other. Weightings "
            "that fit know the weights before the step: Fixed, Equal, Uncertainty, IMTLL, DWA, RLW"
        )


def run_back_one(
    losses: Mapping[str, Tensor],
    window: Window,
    tasks: Sequence[str],
    params: Sequence[nn.Parameter],
    scale: Tensor | None,
) -> bool | None:
    """Run the loss of one task back into ``.grad``, the mean over the ranks.

    Args:
        losses: Loss of the task, by name; empty where this rank has none.
        window: Step that the loss is a part of.
        tasks: Names of all tasks.
        params: Parameters that are trained.
        scale: Factor of a loss scaler.

    Returns:
        Whether loss and gradient are finite; None if no rank has a loss, or none a gradient other
        than 0, such as of a head that no image of the batch trains.
    """
    raw = {name: loss for name, loss in losses.items() if loss.requires_grad}
    report = Report(raw, tasks, params[0].device, changed=False)
    for name, loss in raw.items():
        factor = window.factors[name]
        weighted = loss if factor == 1.0 else factor * loss
        (weighted if scale is None else weighted * scale).backward()
    if not report.losses:
        return None
    average_grads(with_grad(params))
    grads = [p.grad for p in params if p.grad is not None]
    lengths = torch.stack(torch._foreach_norm(grads)) if grads else torch.zeros(1)
    finite, some = HostCopy(torch.stack([lengths.isfinite().all(), lengths.any()])).read().tolist()
    ((name, value),) = report.losses.items()
    if math.isfinite(value) and not some:
        return None
    window.reports.append(report)
    if math.isfinite(value) and finite:
        return True
    window.nonfinite.add(name)
    return False
