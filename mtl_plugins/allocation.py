"""Which example trains which tasks: stochastic task allocation (paper B, section 3)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, TypeVar

B = TypeVar("B")


class Allocated(tuple[str, ...]):
    """Names of the tasks that an example trains, with those from which they were drawn.

    Attributes:
        among: Names of all tasks of the allocation.
    """

    among: tuple[str, ...]

    def __new__(cls, tasks: Iterable[str], among: Sequence[str]) -> Allocated:
        self = super().__new__(cls, tasks)
        self.among = tuple(among)
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # on its way to a worker, or copied
        return Allocated, (tuple(self), self.among)


class TaskAllocation:
    """Gives every example some of the tasks, and every batch its turns.

    STA: a batch has one turn, in which each example gets ``tasks_per_sample`` tasks at random.
    ISTA: a batch has as many turns as it takes until each example has had every task once; the next
    one comes ``gap`` steps later, after the turns of other batches.

    What an example gets depends on nothing but the seed, the epoch, the number of its batch and its
    place there: it is the same on every rank, in every process, and after a restart.

    Args:
        tasks: Names of all tasks.
        tasks_per_sample: How many an example gets in a turn; in the last one what is left.
        gap: Steps between two turns of a batch; None is STA. At the end of an epoch, where fewer
            batches are left than that, as many as there are batches.
        seed: The same on every rank.

    Raises:
        ValueError: There are fewer tasks than an example should get, or ``gap`` is not positive.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        tasks_per_sample: int = 1,
        gap: int | None = None,
        seed: int = 0,
    ) -> None:
        repeated = sorted({task for task in tasks if list(tasks).count(task) > 1})
        if repeated or not tasks:
            raise ValueError(f"tasks: expected different names, got {list(tasks)}")
        whole = isinstance(tasks_per_sample, int)
        if not whole or not 1 <= tasks_per_sample <= len(tasks):
            raise ValueError(
                f"tasks_per_sample: expected 1 to {len(tasks)}, since the tasks are "
                f"{list(tasks)}, got {tasks_per_sample!r}"
            )
        if gap is not None and not (isinstance(gap, int) and gap >= 1):
            raise ValueError(f"gap: expected at least 1, got {gap!r}")
        self.tasks = tuple(tasks)
        self.tasks_per_sample = tasks_per_sample
        self.gap = gap
        self.seed = seed
        self._epoch, self._step = 0, 0
        self._resumed = 0

    @property
    def remark(self) -> str | None:
        """A warning, where every example trains every task, which begins with an option's name."""
        if self.tasks_per_sample < len(self.tasks):
            return None
        option, found = "tasks_per_sample", f"{self.tasks_per_sample} is all of them"
        if len(self.tasks) == 1:
            option, found = "tasks", "there is only one"
        return (
            f"{option}: of the tasks {list(self.tasks)} {found}, so that every image trains every "
            "task at each step, as without task allocation"
        )

    @property
    def turns(self) -> int:
        """How many each batch has."""
        return 1 if self.gap is None else math.ceil(len(self.tasks) / self.tasks_per_sample)

    def schedule(
        self, batches: Iterable[B], epoch: int = 0, first: int = 0
    ) -> Iterator[tuple[B, int, int]]:
        """Batches in the order in which they are trained, with their number and turn.

        Args:
            batches: Of an epoch, or without end.
            epoch: Its number.
            first: Number of the first of ``batches``, from :meth:`position`.
        """
        start, self._resumed = self._resumed if epoch == self._epoch else 0, 0
        for step, turn in enumerate(self._all_turns(batches, first)):
            if step >= start:
                self._epoch, self._step = epoch, step + 1
                yield turn

    def position(self, step: int) -> tuple[int, int]:
        """Where a schedule without end is after some steps.

        Args:
            step: How many.

        Returns:
            The number of the first batch that it still needs, and how many steps a schedule that
            begins there has behind it.
        """
        together = self.gap or 1
        groups, behind = divmod(step, together * self.turns)
        return groups * together, behind

    def _all_turns(self, batches: Iterable[B], first: int) -> Iterator[tuple[B, int, int]]:
        group: list[tuple[int, B]] = []
        for numbered in zip(count(first), batches):
            group.append(numbered)
            yield numbered[1], numbered[0], 0
            if len(group) == (self.gap or 1):
                yield from self._later_turns(group)
                group = []
        yield from self._later_turns(group)

    def _later_turns(self, group: Sequence[tuple[int, B]]) -> Iterator[tuple[B, int, int]]:
        for turn in range(1, self.turns):
            for number, batch in group:
                yield batch, number, turn

    def tasks_of(self, example: int, batch: int, turn: int, epoch: int = 0) -> Allocated:
        """Returns the tasks that an example trains, in the order of all tasks.

        Args:
            example: Its place in the batch of all ranks.
            batch: Number of the batch in the epoch.
            turn: Of the batch.
            epoch: Its number.
        """
        order = list(self.tasks)
        random.Random(f"{self.seed} {epoch} {batch} {example}").shuffle(order)
        first = turn * self.tasks_per_sample
        chosen = order[first : first + self.tasks_per_sample]
        return Allocated((task for task in self.tasks if task in chosen), self.tasks)

    def state_dict(self) -> dict[str, Any]:
        """Where :meth:`schedule` is, to go on there with the same batches."""
        return {"seed": self.seed, "epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.seed, self._epoch, self._step = state["seed"], state["epoch"], state["step"]
        self._resumed = self._step


class BatchTasks:
    """Which examples of the batch at hand train which task: the question that heads ask.

    An adapter notes the tasks when the model gets a batch.

    Attributes:
        allocated: Whether the examples have tasks.
        count: Number of examples.
    """

    def __init__(self) -> None:
        self._each: list[Sequence[str]] = []

    @property
    def allocated(self) -> bool:
        return bool(self._each)

    @property
    def count(self) -> int:
        return len(self._each)

    def note(self, each: Iterable[Sequence[str] | None]) -> None:
        """Hears the tasks of each example; None where they are not allocated.

        Raises:
            ValueError: Some examples of the batch have tasks and some have none.
        """
        noted = list(each)
        self._each = [tasks for tasks in noted if tasks is not None]
        if self._each and len(self._each) < len(noted):
            raise ValueError(
                f"task allocation: of {len(noted)} examples of a batch, {len(self._each)} have "
                "tasks; a batch sampler or loader gives tasks to all of them"
            )

    def names(self) -> set[str]:
        """Returns the tasks that some example has."""
        return {task for tasks in self._each for task in tasks}

    def drawn(self) -> tuple[str, ...]:
        """Returns all tasks that an example can have; none if the tasks do not tell."""
        return next((t.among for t in self._each if isinstance(t, Allocated)), ())

    def chosen(self, task: str) -> list[int] | None:
        """Returns the places of the examples that train a task; None stands for all of them."""
        chosen = [i for i, tasks in enumerate(self._each) if task in tasks]
        return None if len(chosen) == len(self._each) else chosen
