"""Stochastic task allocation: which example trains which tasks (paper B, section 3)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, TypeVar

from mtl_plugins.registry import suggest
from mtl_plugins.state import check_keys

B = TypeVar("B")


class Allocated(tuple[str, ...]):
    """Names of the tasks that an example trains, and of the tasks they were drawn from.

    Attributes:
        among: Names of all tasks of the allocation.
    """

    among: tuple[str, ...]

    def __new__(cls, tasks: Iterable[str], among: Sequence[str]) -> Allocated:
        self = super().__new__(cls, tasks)
        self.among = tuple(among)
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # for copies, and the way to a worker
        return Allocated, (tuple(self), self.among)


class TaskAllocation:
    """Gives every example some of the tasks, and every batch its turns.

    STA: a batch has one turn, in which each example gets ``tasks_per_sample`` tasks at random.
    ISTA: a batch has as many turns as it takes until each example has had every task once; the next
    turn comes ``gap`` steps later, after the turns of other batches.

    The tasks of an example depend on nothing but the seed, the epoch, the number of the batch and
    the place in the batch: they are the same on every rank, in every process, and after a restart.

    Args:
        tasks: Names of all tasks.
        tasks_per_sample: Number of tasks that an example gets in a turn; the last turn has the
            tasks that are left.
        gap: Number of steps between two turns of a batch; None is STA. At the end of an epoch,
            where fewer batches are left, their number.
        seed: Seed of the draws, the same on every rank.
        only: Task that every example trains, and no other: the single-task baseline. None draws.

    Raises:
        ValueError: There are fewer tasks than an example should get, ``gap`` is not positive, or
            ``only`` is no task.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        tasks_per_sample: int = 1,
        gap: int | None = None,
        seed: int = 0,
        only: str | None = None,
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
        if only is not None and only not in tasks:
            raise ValueError(f"only: no task is called {only!r}; {suggest(only, tasks)}")
        self.only = only
        self.tasks = tuple(tasks)
        self.tasks_per_sample = tasks_per_sample
        self.gap = gap
        self.seed = seed
        self._epoch, self._step = 0, 0
        self._resumed = 0

    @property
    def remark(self) -> str | None:
        """Warning, beginning with an option's name, that every example trains every task."""
        if self.tasks_per_sample < len(self.tasks) or self.only is not None:
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
        """Number of turns of each batch."""
        return (
            1
            if self.gap is None or self.only is not None
            else math.ceil(len(self.tasks) / self.tasks_per_sample)
        )

    def schedule(
        self, batches: Iterable[B], epoch: int = 0, first: int = 0
    ) -> Iterator[tuple[B, int, int]]:
        """Yield batches in the order in which they are trained, with their number and turn.

        Args:
            batches: Batches of an epoch, or without end.
            epoch: Number of the epoch.
            first: Number of the first of ``batches``, from :meth:`position`.
        """
        start, self._resumed = self._resumed if epoch == self._epoch else 0, 0
        for step, turn in enumerate(self._all_turns(batches, first)):
            if step >= start:
                self._epoch, self._step = epoch, step + 1
                yield turn

    def position(self, step: int) -> tuple[int, int]:
        """Find where a schedule without end is after some steps.

        Args:
            step: Number of steps.

        Returns:
            The number of the first batch that is still needed, and the number of steps that a
            schedule which begins with this batch has behind it.
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
        """Return the tasks that an example trains, in the order of all tasks.

        Args:
            example: Place of the example in the batch of all ranks.
            batch: Number of the batch in the epoch.
            turn: Number of the turn of the batch.
            epoch: Number of the epoch.
        """
        if self.only is not None:
            return Allocated((self.only,), self.tasks)
        order = list(self.tasks)
        random.Random(f"{self.seed} {epoch} {batch} {example}").shuffle(order)
        first = turn * self.tasks_per_sample
        chosen = order[first : first + self.tasks_per_sample]
        return Allocated((task for task in self.tasks if task in chosen), self.tasks)

    def state_dict(self) -> dict[str, Any]:
        """Return the place of :meth:`schedule`, to go on there with the same batches."""
        return {"seed": self.seed, "epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        check_keys("the allocation", state, self.state_dict())
        self.seed, self._epoch, self._step = state["seed"], state["epoch"], state["step"]
        self._resumed = self._step


class BatchTasks:
    """Tells heads which examples of the batch at hand train which task.

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
        """Note the tasks of each example, None where tasks are not allocated.

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
        """Return the tasks that some example has."""
        return {task for tasks in self._each for task in tasks}

    def drawn(self) -> tuple[str, ...]:
        """Return all tasks that an example can have; none if no :class:`Allocated` tells."""
        return next((t.among for t in self._each if isinstance(t, Allocated)), ())

    def chosen(self, task: str) -> list[int] | None:
        """Return the places of the examples that train a task; None stands for all of them."""
        chosen = [i for i, tasks in enumerate(self._each) if task in tasks]
        return None if len(chosen) == len(self._each) else chosen
