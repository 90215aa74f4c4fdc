"""Averages across the ranks of a data-parallel run.

The model runs without the synchronisation of its wrapper, and the task gradients are averaged
before they are aggregated: every rank then computes the same weights, those of the whole batch.
Without a process group of several ranks, everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from mtl_plugins.transfer import send


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def from_first_rank(value: int) -> int:
    """Return the value that the first rank has."""
    values = [value]
    if world_size() > 1:
        distributed.broadcast_object_list(values)
    return values[0]


def average(tensor: Tensor) -> Tensor:
    """Average over the ranks, in place."""
    if world_size() > 1:
        whole = tensor.contiguous()
        distributed.all_reduce(whole)
        whole /= world_size()
        if whole is not tensor:
            tensor.copy_(whole)
    return tensor


def average_grads(params: Sequence[Tensor]) -> None:
    """Average ``.grad`` over the ranks, in one flat all-reduce.

    A rank without a gradient takes part with zeros.

    Args:
        params: Parameters, the same on every rank, see :func:`with_grad`.
    """
    if world_size() == 1 or not params:
        return
    for p in params:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    _average_flat([p.grad for p in params if p.grad is not None])


def average_some(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
    """Average tensors over the ranks, in place; a tensor that a rank does not have counts as zero.

    Args:
        tensors: Tensors of this rank, None for a missing one; one that no rank has stays None.
        like: Tensors with the shapes and dtypes of ``tensors``.
    """
    if world_size() == 1 or not tensors:
        return list(tensors)
    everywhere = gather([int(t is not None) for t in tensors], like[0].device)
    filled = [
        t if t is not None else torch.zeros_like(x) if any(ranks) else None
        for t, x, ranks in zip(tensors, like, everywhere, strict=True)
    ]
    _average_flat([t for t in filled if t is not None])
    return filled


def _average_flat(tensors: Sequence[Tensor]) -> None:
    if not tensors:
        return
    flat = average(torch.cat([t.flatten() for t in tensors]))
    for t, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(mean.view_as(t))


def with_grad(params: Sequence[Tensor]) -> list[Tensor]:
    """Return the parameters that have a gradient on some rank."""
    here = [int(p.grad is not None) for p in params]
    everywhere = gather(here, params[0].device) if params else []
    return [p for p, ranks in zip(params, everywhere, strict=True) if any(ranks)]


def gather(values: Sequence[int], device: torch.device) -> list[tuple[int, ...]]:
    """Return, for each value, the values of all ranks."""
    if world_size() == 1:
        return [(value,) for value in values]
    mine = send(torch.tensor(values), device)
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    distributed.all_gather(everyone, mine)
    return list(zip(*torch.stack(everyone).tolist(), strict=True))
