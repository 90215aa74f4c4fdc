"""Task gradients by their definition, and what should become of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.testing import assert_close


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
    """Stacks the task gradients of what is shared, aggregates, and leaves the rest alone."""
    grads = per_task(losses, params)
    reached = [[g[i] for g in grads if g[i] is not None] for i in range(len(params))]
    shared = [i for i, found in enumerate(reached) if len(found) > 1]
    rows = [flat([g[i] for i in shared], [params[i] for i in shared]) for g in grads]
    jacobian = torch.stack([row for row in rows if row.any()])
    update = iter(aggregator(jacobian).split([params[i].numel() for i in shared]))
    return [
        next(update).view_as(params[i]) if i in shared else (found[0] if found else None)
        for i, found in enumerate(reached)
    ]


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
