"""Reports that the ranks exchange about a step, on their way to the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from mtl_plugins.distributed import average, world_size
from mtl_plugins.transfer import HostCopy

Again = Callable[[], Mapping[str, Tensor | float]]
"""Function that computes the losses of a batch once more."""


class Report:
    """The losses of one call: the mean over the ranks, on its way to the CPU.

    Args:
        losses: Losses of this rank.
        tasks: Names of all tasks, in the same order on every rank.
        device: Device of the losses.
        changed: Whether something else is shared or reached than the ranks have agreed on.
        share: Weight of the losses in the step.
        again: Function that computes the losses once more; None where none is needed.

    Attributes:
        share: Weight of the losses in the step.
        again: Function that computes the losses once more; None where none is needed.
    """

    def __init__(
        self,
        losses: Mapping[str, Tensor],
        tasks: Sequence[str],
        device: torch.device,
        changed: bool,
        share: float = 1.0,
        again: Again | None = None,
    ) -> None:
        self.share, self.again = share, again
        # Another rank may have a task that this one lacks: all take part with all.
        self._tasks = list(tasks) if world_size() > 1 else list(losses)
        zero = torch.zeros((), device=device)
        one = zero + 1.0
        values = [
            losses[name].detach().to(device, torch.float32).reshape(()) if name in losses else zero
            for name in self._tasks
        ]
        there = [one if name in losses else zero for name in self._tasks]
        numbers = torch.stack([*values, *there, one if changed else zero])
        self._copy = HostCopy(average(numbers))

    @cached_property
    def _numbers(self) -> list[float]:
        return self._copy.read().tolist()

    @property
    def losses(self) -> dict[str, float]:
        """Losses of the tasks that take part on some rank."""
        count = len(self._tasks)
        found = zip(self._tasks, self._numbers[:count], self._numbers[count:-1], strict=True)
        return {name: loss for name, loss, there in found if there > 0.0}

    @property
    def changed(self) -> bool:
        """Whether some rank reports a change."""
        return self._numbers[-1] > 0.0
