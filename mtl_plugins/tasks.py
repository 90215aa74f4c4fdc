"""Which losses make which task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor

from mtl_plugins.registry import suggest


class TaskGroups:
    """Sums the terms of a loss dict into one loss a task.

    The first loss dict is checked in full; later on a term may be absent, since a batch need not
    have examples of every task, but none that no task claims may come.

    Args:
        tasks: For each task, shell-style patterns of the names of its losses, or one such pattern.
            None makes every term a task of its own.

    Attributes:
        names: The tasks in the order of the config; empty if that names none.
        optional: Patterns of the losses that the model has on some batches only, such as those of
            labels that not every image has: the first batch may lack them too.

    Examples:
        >>> groups = TaskGroups(dict(box=["loss_rpn_*", "loss_cls", "loss_bbox"], mask="loss_mask"))
    """

    def __init__(self, tasks: Mapping[str, str | Sequence[str]] | None) -> None:
        if tasks is not None and (not isinstance(tasks, Mapping) or not tasks):
            raise TypeError(
                "tasks: expected a dict of task name to loss names, such as "
                f"dict(detection=['loss_rpn_*', 'loss_cls'], mask='loss_mask'), got {tasks!r}"
            )
        self.names = list(tasks or {})
        self.optional: Sequence[str] = ()
        self._patterns = {
            task: [patterns] if isinstance(patterns, str) else list(patterns)
            for task, patterns in (tasks or {}).items()
        }
        self._task_of: dict[str, str] = {}
        self._checked = False

    def __call__(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of each task that has one, in the order of the config.

        Args:
            losses: Scalar terms by name.

        Raises:
            KeyError: A term that no task or more than one task claims; on the first call also a
                pattern that matches no term.
        """
        for name in losses:
            if name not in self._task_of:
                self._task_of[name] = self._claim(name, losses)
        if not self._checked:
            self._check(losses)
        terms: dict[str, list[Tensor]] = {task: [] for task in self._patterns or losses}
        for name, loss in losses.items():
            terms[self._task_of[name]].append(loss)
        return {task: sum(some[1:], some[0]) for task, some in terms.items() if some}

    def task_of(self, name: str) -> str | None:
        """The task that a loss of this name belongs to, if one alone claims it."""
        claims = [task for task in self._patterns if self._claims(task, name)]
        return name if not self._patterns else claims[0] if len(claims) == 1 else None

    def _claims(self, task: str, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._patterns[task])

    def _claim(self, name: str, losses: Mapping[str, Tensor]) -> str:
        if not self._patterns:
            return name
        claims = [task for task in self._patterns if self._claims(task, name)]
        if len(claims) == 1:
            return claims[0]
        if claims:
            raise KeyError(f"tasks: the loss {name!r} is claimed by {claims}; it can have one task")
        raise KeyError(
            f"tasks: no task claims the loss {name!r}. The model returned {list(losses)}; "
            f"the patterns are {self._patterns}"
        )

    def _check(self, losses: Mapping[str, Tensor]) -> None:
        known = [*losses, *self.optional]
        for task, patterns in self._patterns.items():
            if not patterns:
                raise KeyError(f"tasks.{task}: names no loss. The model returned {list(losses)}")
            for pattern in patterns:
                # An optional loss is a pattern itself: either of the two may be the wider one.
                if not any(fnmatchcase(k, pattern) or fnmatchcase(pattern, k) for k in known):
                    raise KeyError(
                        f"tasks.{task}: {pattern!r} matches none of the losses that the model "
                        f"returned; {suggest(pattern, known)}"
                    )
        self._checked = True
