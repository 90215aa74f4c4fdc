"""Random numbers of a method: its own, the same on every rank, and continued after a restart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mtl_plugins.distributed import from_first_rank
from mtl_plugins.registry import Method


class RandomMethod(Method):
    """A method that draws random numbers, from a generator of its own.

    Args:
        seed: Seed of the generator; None takes the seed of the run (:func:`torch.initial_seed`). In
            a data-parallel run the first rank's counts, so that all ranks draw the same numbers.
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self._generator = torch.Generator()
        self._generator.manual_seed(torch.initial_seed() if seed is None else seed)
        self._agreed = False

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._generator.set_state(state["generator"].cpu())
        self._agreed = True

    def generator(self) -> torch.Generator:
        """The generator, on the CPU and in the same state on every rank."""
        if not self._agreed:
            self._generator.manual_seed(from_first_rank(self._generator.initial_seed()))
            self._agreed = True
        return self._generator

    def draw_seed(self) -> int:
        """Draw a seed for draws elsewhere, such as on another device."""
        return int(torch.randint(2**62, (), generator=self.generator()))

    def device_generator(self, device: torch.device) -> torch.Generator:
        """Make a generator on a device, in the same state on every rank."""
        return torch.Generator(device).manual_seed(self.draw_seed())

    def orders(self, tasks: int) -> list[list[int]]:
        """Draw, for each task, an order of the other tasks."""
        draws = torch.rand(tasks, tasks, generator=self.generator()).argsort(dim=1).tolist()
        return [[j for j in row if j != i] for i, row in enumerate(draws)]
