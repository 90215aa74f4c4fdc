"""GradVac: raise each pair's cosine to what it usually is."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtl_plugins.aggregation.base import Aggregator, RandomAggregator
from mtl_plugins.aggregation.memory import in_single
from mtl_plugins.aggregation.solvers import Matrix, Vector, dot
from mtl_plugins.draws import RandomMethod
from mtl_plugins.features import find_module
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
    """GradVac with targets for each part of what is shared (Wang et al. 2021, section 4).

    Each part of the gradients is treated by itself, as :class:`GradVac` treats the whole: each
    parameter ("all_matrix" in the paper), each layer ("all_layer"), or groups of layers. The
    targets are part of the checkpoint; they are dropped where other parameters are shared than
    before.

    Args:
        beta: Share of each new cosine in the target.
        by: Parts. ``"parameter"``: each parameter; ``"module"``: all parameters that a module has
            itself, such as weight and bias of a convolution; or paths of modules, such as
            ``["backbone", "neck"]``, each of which is a part with all modules inside. A parameter
            of two of them belongs to the first; parameters of none are one more part.
        seed: Seed of the orders; None takes the seed of the run.
    """

    scale = "sum"
    of_features = False

    def __init__(
        self,
        beta: float = 0.01,
        by: Literal["parameter", "module"] | Sequence[str] = "parameter",
        seed: int | None = None,
    ) -> None:
        super().__init__(seed)
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta lies in [0, 1], got {beta}")
        paths = isinstance(by, Sequence) and by and all(isinstance(path, str) for path in by)
        if by not in ("parameter", "module") and (isinstance(by, str) or not paths):
            raise ValueError(
                f"by: expected 'parameter', 'module' or a list of paths of modules, got {by!r}"
            )
        self.beta, self.by = beta, by
        self._part: dict[int, int] | None = None  # number of the part, by id of the parameter
        self._layout: list[tuple[int, int]] = []  # part and width of each shared parameter
        self._targets: list[Matrix] = []

    def state_dict(self) -> dict[str, Any]:
        targets = [torch.tensor(target, dtype=torch.float64) for target in self._targets]
        return super().state_dict() | {"layout": list(self._layout), "targets": targets}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._layout = [(part, width) for part, width in state["layout"]]
        self._targets = [target.tolist() for target in state["targets"]]

    def meet(self, model: nn.Module, tasks: Sequence[str]) -> None:
        if self.by == "parameter":
            return
        if self.by == "module":
            parts = [module.parameters(recurse=False) for module in model.modules()]
        else:
            parts = [find_module(model, path, "aggregator.by").parameters() for path in self.by]
        self._part = {}
        for number, parameters in enumerate(parts):
            for p in parameters:
                self._part.setdefault(id(p), number)

    def __call__(self, jacobian: Tensor, tasks: Sequence[int] | None = None) -> Tensor:
        return self._by_part(jacobian, [(0, jacobian.shape[1])], tasks)

    def on_parameters(
        self,
        jacobian: Tensor,
        parameters: Sequence[Tensor],
        tasks: Sequence[int] | None = None,
        losses: Tensor | None = None,
    ) -> Tensor:
        if self.by == "parameter":
            parts: Sequence[int] = range(len(parameters))
        elif self._part is None:
            raise RuntimeError(
                f"aggregator.by: with {self.by!r}, {type(self).__name__} has to know the model; "
                "call MultiTaskBackward.protect(model) before the first step"
            )
        else:
            numbers: dict[int, int] = {}  # without gaps, in the order in which the parts appear
            found = [self._part.get(id(p), -1) for p in parameters]
            parts = [numbers.setdefault(part, len(numbers)) for part in found]
        widths = (p.numel() for p in parameters)
        return self._by_part(jacobian, list(zip(parts, widths, strict=True)), tasks)

    def _by_part(
        self, jacobian: Tensor, layout: list[tuple[int, int]], tasks: Sequence[int] | None
    ) -> Tensor:
        """Aggregate; ``layout`` has the part and the width of each parameter."""
        tasks = range(len(jacobian)) if tasks is None else tasks
        parts = [part for part, _ in layout]
        if layout != self._layout:
            if self._layout:
                logger.warning("what the tasks share has changed; GradVac's targets are dropped")
            self._layout, self._targets = layout, [[] for _ in set(parts)]
        slices = jacobian.split([width for _, width in layout], dim=1)
        # All Gramians come from the device at once.
        products = torch.stack([in_single(piece) @ in_single(piece).T for piece in slices]).cpu()
        if not products.isfinite().all():
            products = torch.stack([gramian_of(piece) for piece in slices])
        gramians = products.new_zeros(len(self._targets), *products.shape[1:], dtype=torch.float64)
        gramians.index_add_(0, torch.tensor(parts), products.double())
        orders = self.orders(len(jacobian))
        found = []
        for gramian, target in zip(gramians.tolist(), self._targets, strict=True):
            grow(target, max(tasks) + 1)
            found.append(vaccinate(gramian, orders, target, tasks, self.beta))
        weights = send(torch.tensor(found, dtype=torch.float64), jacobian.device)
        update = torch.empty_like(jacobian[0])
        outs = update.split([width for _, width in layout])
        for part, piece, out in zip(parts, slices, outs, strict=True):
            out.copy_(combine(weights[part], piece))
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
