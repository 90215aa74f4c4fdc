"""What every loss weighting has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from mtl_plugins.registry import Method


class Weighting(Method, ABC):
    """Weights the losses of the tasks before any gradient is taken.

    Everything here is about a few plain numbers on the CPU. A step asks for :meth:`weights` before
    its backward pass and tells :meth:`update` afterwards what it has seen; the losses that it has
    to wait for anyway by then.

    Attributes:
        needs_losses: Whether :meth:`weights` needs the losses of the step that it is for. The step
            then waits for its forward pass.
        needs_norms: Whether :meth:`update` needs the length of the gradients at the last layer that
            all tasks share.
        needs_new_losses: Whether it has to be told by :meth:`update_after` what the losses on the
            same batch are after the optimizer step.
    """

    needs_losses: ClassVar[bool] = False
    needs_norms: ClassVar[bool] = False
    needs_new_losses: ClassVar[bool] = False

    def check(self, tasks: Collection[str]) -> None:
        """Told all tasks before the first step, if they are known by then.

        Raises:
            KeyError: The options do not fit them.
        """

    @abstractmethod
    def weights(
        self, tasks: Collection[str], losses: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """The factor of each loss.

        Args:
            tasks: Those that take part in this step.
            losses: Their losses, the mean over the ranks; given if :attr:`needs_losses`.
        """

    def update(self, losses: Mapping[str, float], norms: Mapping[str, float] | None = None) -> None:
        """Learns from a step whose losses and gradients were finite.

        Args:
            losses: Of the tasks that took part, unweighted; the mean over the ranks.
            norms: ``‖∇_W L_t‖`` of the unweighted losses, where ``W`` is the last layer that all
                tasks share; given if :attr:`needs_norms`.
        """

    def update_after(self, losses: Mapping[str, float], new_losses: Mapping[str, float]) -> None:
        """Learns from what a step did to the losses, if :attr:`needs_new_losses`.

        Args:
            losses: As for :meth:`update`.
            new_losses: The losses on the same batch after the optimizer step.
        """


class LearnedWeighting(Weighting):
    """A weighting with one learned number a task, and an Adam of its own.

    They do not sit in the optimizer of the model, where gradient clipping, weight decay, a loss
    scaler and the learning rate of the model would act on them, and they on the clipping.

    Args:
        lr: Learning rate of Adam.
        weight_decay: L2 penalty in Adam.

    Attributes:
        initial: What the numbers are at first.
    """

    initial: ClassVar[float] = 0.0

    def __init__(self, lr: float = 0.025, weight_decay: float = 0.0) -> None:
        super().__init__()
        if lr < 0.0 or weight_decay < 0.0:
            raise ValueError(f"lr and weight_decay are not negative, got {lr} and {weight_decay}")
        self.lr = lr
        self.weight_decay = weight_decay
        self._numbers: dict[str, nn.Parameter] = {}
        self._adam: torch.optim.Adam | None = None

    def number(self, task: str) -> float:
        """The learned number of a task; the initial one if the task has not been seen."""
        return self._numbers[task].item() if task in self._numbers else self.initial

    def descend(self, gradients: Mapping[str, float]) -> None:
        """One step of Adam on the numbers of these tasks; those of others stay."""
        for task in gradients:
            self._add(task)
        for task, number in self._numbers.items():
            gradient = gradients.get(task)
            number.grad = None if gradient is None else torch.full_like(number, gradient)
        if self._adam is not None:
            self._adam.step()

    def _add(self, task: str) -> None:
        if task in self._numbers:
            return
        number = nn.Parameter(torch.tensor(self.initial, dtype=torch.float64))
        self._numbers[task] = number
        if self._adam is None:
            self._adam = torch.optim.Adam([number], self.lr, weight_decay=self.weight_decay)
        else:
            self._adam.add_param_group({"params": [number]})

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "numbers": {task: number.item() for task, number in self._numbers.items()},
            "adam": None if self._adam is None else self._adam.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._numbers, self._adam = {}, None
        for task, number in state["numbers"].items():
            self._add(task)
            self._numbers[task].data.fill_(number)
        if self._adam is not None:
            self._adam.load_state_dict(state["adam"])
