"""GradDrop: in every coordinate, only gradients of one sign pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from mtl_plugins.aggregation.base import Aggregator
from mtl_plugins.draws import RandomMethod
from mtl_plugins.gradients import dense_strides
from mtl_plugins.transfer import send

CHUNK = 1 << 20  # columns at a time: intermediate results are small beside the jacobian
CPU_CHUNK = 1 << 14  # results that fit a CPU's cache


class GradDrop(RandomMethod, Aggregator):
    r"""Gradient sign dropout (`Chen et al. 2020, algorithm 1 <https://arxiv.org/abs/2010.06808>`_).

    In every coordinate the tasks agree on a sign to the degree of its purity

    .. math:: P = \tfrac12 \Bigl( 1 + \frac{\sum_t g_t}{\sum_t |g_t|} \Bigr)

    With :math:`U` drawn uniformly from [0, 1) the positive gradients pass if :math:`U < P`, and the
    negative ones otherwise; of the rest, the share ``leak``:

    .. math:: d = \sum_t g_t \, (\ell_t + (1 - \ell_t) \, [g_t \text{ passes}])

    On features (section 3.2), purity and sign at a location are those of
    :math:`G_t = \sum_n \operatorname{sign}(Z_n) \, \partial L_t / \partial Z_n`, summed over the
    batch; the decision holds there for every example. Where ``Z`` is zero, as after a ReLU, an
    example has no say. A task with :math:`G_t = 0` passes: where nobody has a say, the gradients
    are summed, and features that are all zero at first can learn. The length of the update is not
    restored afterwards, which the authors' code does and the paper does not mention. In a
    data-parallel run each rank's features have a purity of their own, with the same :math:`U` where
    they have the same shape.

    Args:
        leak: Share in [0, 1] of the other sign that passes: one number, or one a task.
        seed: Seed of the draws; None takes the seed of the run.

    """

    scale = "sum"

    def __init__(self, leak: float | Sequence[float] = 0.0, seed: int | None = None) -> None:
        super().__init__(seed)
        numbers = leak if isinstance(leak, Sequence) else [leak]
        if not all(0.0 <= number <= 1.0 for number in numbers):
            raise ValueError(f"leak lies in [0, 1], got {leak}")
        self.leak = leak

    def __call__(self, jacobian: Tensor, tasks: Sequence[int] | None = None) -> Tensor:
        leaks = self._leaks(jacobian, tasks)
        # All draws at once, where the update will be: they do not depend on the chunks.
        update = _uniform(jacobian.shape[1:], self.device_generator(jacobian.device)).to(leaks)
        chunk = CPU_CHUNK if jacobian.device.type == "cpu" else CHUNK
        for narrow, part in zip(jacobian.split(chunk, dim=1), update.split(chunk), strict=True):
            rows = narrow.to(leaks)
            part.copy_((_shares(rows, part, leaks) * rows).sum(dim=0))
        return update.to(jacobian)

    def on_features(
        self,
        jacobian: Tensor,
        features: Sequence[Tensor],
        tasks: Sequence[int] | None = None,
    ) -> Tensor:
        jacobian, leaks = jacobian.contiguous(), self._leaks(jacobian, tasks)
        generator = self.device_generator(jacobian.device)
        update = jacobian.new_zeros(jacobian.shape[1:], dtype=leaks.dtype)
        ends = accumulate(z.numel() for z in features)
        for z, end in zip(features, ends, strict=True):
            columns = slice(end - z.numel(), end)
            # In the memory format of the features, as their gradients are.
            total, *rows = (
                flat[columns].as_strided(z.shape, dense_strides(z)) for flat in (update, *jacobian)
            )
            sign = z.detach().sign().to(leaks)
            signal = torch.stack([(row * sign).sum(dim=0) for row in rows])
            draws = _uniform(z.shape[1:], generator)
            for share, row in zip(_shares(signal, draws, leaks), rows, strict=True):
                total += share * row
        return update.to(jacobian)

    def _leaks(self, jacobian: Tensor, tasks: Sequence[int] | None) -> Tensor:
        """Return the leaks ``[T]``, in the dtype to compute in."""
        tasks = range(len(jacobian)) if tasks is None else tasks
        if not isinstance(self.leak, Sequence):
            numbers = [self.leak] * len(tasks)
        elif max(tasks, default=-1) < len(self.leak):
            numbers = [self.leak[t] for t in tasks]
        else:
            raise ValueError(f"leak has {len(self.leak)} numbers for {max(tasks) + 1} tasks")
        dtype = torch.promote_types(jacobian.dtype, torch.float32)
        return send(torch.tensor(numbers, dtype=dtype), jacobian.device)


def _uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw ``U``, in single precision whatever the gradients are in: half is too coarse."""
    return torch.rand(shape, generator=generator, dtype=torch.float32, device=generator.device)


def _shares(signal: Tensor, draws: Tensor, leaks: Tensor) -> Tensor:
    """Find the share of each task's gradient that passes.

    Args:
        signal: Values ``[T, ...]`` whose signs count.
        draws: Draws ``U``, ``[...]``.
        leaks: Leaks ``[T]``.

    Returns:
        The shares ``[T, ...]``: 1, or the task's leak.
    """
    # P is the positive share of Σ|g|. Zero divided by zero is not above any U, and does no harm.
    purity = signal.clamp(min=0.0).sum(dim=0) / signal.abs().sum(dim=0)
    against = torch.where(draws < purity, -1.0, 1.0).to(signal)
    # Arithmetic on 0 and 1, exact, is a tenth of the time of where() on the CPU.
    against = (signal.sign() * against).clamp_(min=0.0)
    return torch.addcmul(1.0 - against, against, leaks.view(-1, *[1] * draws.ndim))
