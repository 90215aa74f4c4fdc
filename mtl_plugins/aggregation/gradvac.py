"""GradVac: raise each pair's cosine to what it usually is."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_plugins.aggregation.base import Aggregator, RandomAggregator
from mtl_plugins.aggregation.memory import in_single
from mtl_plugins.aggregation.solvers import Matrix, Vector, dot
from mtl_plugins.draws import RandomMethod
from mtl_plugins.gradients import combine, gramian_of
from mtl_plugins.transfer import send

logger = logging.getLogger(__name__)


class GradVac(RandomAggregator):
    r"""Gradient vaccine (Wang et al. 2021, eq. 2 and algorithm 1).

    Paper: `arXiv 2010.05874 <https://arxiv.org/abs/2010.05874>`_.

    The method is PCGrad with a target cosine :math:`\hat\phi_{ij}` of each pair, at first 0. Where
    :math:`\phi = \cos(v_i, g_j)` is below the target,

    .. math:: v_i \leftarrow v_i + \frac{\|v_i\| (\hat\phi \sqrt{1 - \phi^2}
              - \phi \sqrt{1 - \hat\phi^2})}{\|g_j\| \sqrt{1 - \hat\phi^2}} g_j

    and then :math:`\hat\phi \leftarrow (1 - \beta) \hat\phi + \beta \phi`. The targets are part of
    the checkpoint.

    Args:
        beta: Share :math:`\beta` of each new cosine in the target.
        seed: Seed of the orders; None takes the seed of the run.

    """

    scale = "sum"

    def __init__(self, beta: float = 0.01, seed: int | None = None) -> None:
        super().__init__(seed)
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta lies in [0, 1], got {beta}")
        self.beta = beta
        self._target: Matrix = []

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"target": torch.tensor(self._target, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._target = state["target"].tolist()

    def solve(
        self, gramian: Matrix, *, eps: float, losses: Tensor | None, tasks: Sequence[int]
    ) -> Vector:
        grow(self._target, max(tasks) + 1)
        return vaccinate(gramian, self.orders(len(gramian)), self._target, tasks, self.beta)


class GradVacByParameter(RandomMethod, Aggregator):
    """GradVac with targets of their own for each shared parameter (Wang et al. 2021, section 4).

    Each parameter's part of the gradients is treated by itself, as :class:`GradVac` treats the
    whole. The targets are part of the checkpoint; they are dropped where other parameters are
    shared than before.

    Args:
        beta: Share of each new cosine in the target.
        seed: Seed of the orders; None takes the seed of the run.
    """

    scale = "sum"
    of_features = False

    def __init__(self, beta: float = 0.01, seed: int | None = None) -> None:
        super().__init__(seed)
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta lies in [0, 1], got {beta}")
        self.beta = beta
        self._widths: list[int] = []
        self._targets: list[Matrix] = []

    def state_dict(self) -> dict[str, Any]:
        targets = [torch.tensor(target, dtype=torch.float64) for target in self._targets]
        return super().state_dict() | {"widths": list(self._widths), "targets": targets}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._widths = list(state["widths"])
        self._targets = [target.tolist() for target in state["targets"]]

    def __call__(self, jacobian: Tensor, tasks: Sequence[int] | None = None) -> Tensor:
        return self.on_parameters(jacobian, [jacobian[0]], tasks)

    def on_parameters(
        self,
        jacobian: Tensor,
        parameters: Sequence[Tensor],
        tasks: Sequence[int] | None = None,
        losses: Tensor | None = None,
    ) -> Tensor:
        tasks = range(len(jacobian)) if tasks is None else tasks
        widths = [p.numel() for p in parameters]
        if widths != self._widths:
            if self._widths:
                logger.warning("what the tasks share has changed; GradVac's targets are dropped")
            self._widths, self._targets = list(widths), [[] for _ in widths]
        parts = jacobian.split(widths, dim=1)
        # All Gramians come from the device at once.
        gramians = torch.stack([in_single(part) @ in_single(part).T for part in parts]).cpu()
        if not gramians.isfinite().all():
            gramians = torch.stack([gramian_of(part).double() for part in parts])
        orders = self.orders(len(jacobian))
        update = torch.empty_like(jacobian[0])
        found = []
        for gramian, target in zip(gramians.tolist(), self._targets, strict=True):
            grow(target, max(tasks) + 1)
            found.append(vaccinate(gramian, orders, target, tasks, self.beta))
        weights = send(torch.tensor(found, dtype=torch.float64), jacobian.device)
        for part, out, w in zip(parts, update.split(widths), weights, strict=True):
            out.copy_(combine(w, part))
        return update


def grow(target: Matrix, tasks: int) -> None:
    """Make room for the targets of more tasks, at first 0."""
    for row in target:
        row.extend([0.0] * (tasks - len(row)))
    target.extend([0.0] * tasks for _ in range(tasks - len(target)))


def vaccinate(
    gramian: Matrix,
    orders: Sequence[Sequence[int]],
    targets: Matrix,
    tasks: Sequence[int],
    beta: float,
) -> Vector:
    """Find the weights of the gradients, and move the targets.

    Args:
        gramian: Gramian ``[T, T]``.
        orders: Order of the other tasks, for each task.
        targets: Target cosines of all tasks; changed in place.
        tasks: Number of each row's task.
        beta: Share of each new cosine in the target.
    """
    norms = [math.sqrt(max(row[t], 0.0)) for t, row in enumerate(gramian)]
    total = [0.0] * len(gramian)
    for i, others in enumerate(orders):
        v = [0.0] * len(gramian)
        v[i] = 1.0
        norm_v = norms[i]
        products = gramian[i]
        target = targets[tasks[i]]
        for j in others:
            norm_j = norms[j]
            if not norm_v or not norm_j:
                continue
            phi = max(-1.0, min(1.0, products[j] / norm_v / norm_j))
            wanted = target[tasks[j]]
            if phi < wanted < 1.0:
                step = (norm_v / norm_j) * (
                    wanted * math.sqrt((1.0 - phi * phi) / (1.0 - wanted * wanted)) - phi
                )
                v[j] += step
                products = [p + step * g for p, g in zip(products, gramian[j], strict=True)]
                norm_v = math.sqrt(max(dot(products, v), 0.0))
            target[tasks[j]] = (1.0 - beta) * wanted + beta * phi
        total = [a + b for a, b in zip(total, v, strict=True)]
    return total
