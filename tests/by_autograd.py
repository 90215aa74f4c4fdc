"""Task gradients by their definition, and what should become of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mtl_plugins.aggregation import MCLGS


def per_task(losses: dict[str, Tensor], params: list[Tensor]) -> list[list[Tensor | None]]:
    """One ``autograd.grad`` a task: the definition of a task gradient."""
    return [
        list(torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True))
        for loss in losses.values()
    ]


def flat(grads, params) -> Tensor:
    """One row of the Jacobian; what a task does not reach is zero."""
    filled = (torch.zeros_like(p) if g is None else g for g, p in zip(grads, params, strict=True))
    return torch.cat([g.flatten() for g in filled])


def expected_grads(aggregator, losses, params) -> list[Tensor | None]:
    """Stacks the task gradients of what is shared, aggregates, and leaves the rest alone.

    MCLGS weighs the rest too; where a task shares nothing, by the mean factor of the others.
    """
    grads = per_task(losses, params)
    reached = [[t for t, g in enumerate(grads) if g[i] is not None] for i in range(len(params))]
    shared = [i for i, tasks in enumerate(reached) if len(tasks) > 1]
    rows = [flat([g[i] for i in shared], [params[i] for i in shared]) for g in grads]
    active = [t for t, row in enumerate(rows) if row.any()]
    update = aggregator.on_parameters(
        torch.stack([rows[t] for t in active]), [params[i] for i in shared]
    )
    parts = iter(update.split([params[i].numel() for i in shared]))
    own = dict.fromkeys(range(len(grads)), 1.0)
    if isinstance(aggregator, MCLGS):
        factors = mclgs_factors(torch.stack([rows[t] for t in active]), aggregator.a0).tolist()
        own = dict.fromkeys(own, sum(factors) / len(factors))
        own |= dict(zip(active, factors, strict=True))
    return [
        next(parts).view_as(p)
        if i in shared
        else own[tasks[0]] * grads[tasks[0]][i]
        if tasks
        else None
        for i, (p, tasks) in enumerate(zip(params, reached, strict=True))
    ]


def mclgs_factors(jacobian: Tensor, pace: float) -> Tensor:
    """Paper A, eq. 4 and 5: the factor of each task's whole gradient, heads included."""
    unit = jacobian / jacobian.norm(dim=1, keepdim=True)
    pairs = torch.tanh(pace * (unit @ unit.T)) + 1.0
    tasks = len(jacobian)
    return (pairs.sum(dim=1) - pairs.diagonal()) / (tasks * (tasks - 1))


def check_grads(params, expected, **tolerance) -> None:
    for p, e in zip(params, expected, strict=True):
        if e is None:
            assert p.grad is None
        else:
            assert_close(p.grad, e, **tolerance)


def grads_of(model: nn.Module) -> list[Tensor | None]:
    """The gradients, which the model forgets."""
    grads = [p.grad for p in model.parameters()]
    model.zero_grad()
    return grads
