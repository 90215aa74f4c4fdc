"""Tasks as groups of losses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from mtl_plugins.registry import nearest, suggest
from mtl_plugins.state import check_keys

Patterns = str | Sequence[str]


class TaskGroups:
    """Sums the terms of a loss dict into one loss a task.

    Every term has to be claimed by one task, in every batch. Every pattern has to match a term by
    the first batch in which its task has a loss other than zero: where nobody has examples of a
    task, a head may return a part of its losses only. Later on, terms and tasks may be absent.

    Args:
        tasks: Shell-style patterns of the names of each task's losses, or one such pattern a task.
            None makes every term a task of its own.
        optional: Patterns of the losses that the model has on some batches only, such as those of
            labels that not every image has, or those that begin late in the run.

    Attributes:
        names: Names of the tasks in the order of the config; empty if the config names none.
        optional: Patterns of the losses that some batches lack.

    Raises:
        TypeError: ``tasks`` or ``optional`` is not made of names of losses.
        KeyError: A task names no loss.

    Examples:
        >>> groups = TaskGroups(dict(box=["loss_rpn_*", "loss_cls", "loss_bbox"], mask="loss_mask"))
    """

    def __init__(self, tasks: Mapping[str, Patterns] | None, optional: Patterns = ()) -> None:
        if tasks is not None and (not isinstance(tasks, Mapping) or not tasks):
            raise TypeError(
                "tasks: expected a dict of task name to loss names, such as "
                f"dict(detection=['loss_rpn_*', 'loss_cls'], mask='loss_mask'), got {tasks!r}"
            )
        self._patterns = {t: _patterns(f"tasks.{t}", given) for t, given in (tasks or {}).items()}
        for task, patterns in self._patterns.items():
            if not patterns:
                raise KeyError(f"tasks.{task}: names no loss, expected some such as ['loss_mask']")
        self.names = list(self._patterns)
        self.optional: Sequence[str] = _patterns("optional_losses", optional)
        self._task_of: dict[str, str] = {}
        # Patterns that have not matched a loss yet.
        self._unmatched = {task: list(patterns) for task, patterns in self._patterns.items()}
        self._first = set(self._patterns)  # tasks whose losses have not been looked at

    def __call__(
        self,
        losses: Mapping[str, Any],
        untrained: Collection[str] = (),
        only: str | None = None,
    ) -> dict[str, Any]:
        """Return the loss of each task that has one, in the order of the config.

        Args:
            losses: Scalar terms by name. A number that is no tensor is a constant; a task that has
                nothing else has no loss.
            untrained: Names of other outputs that the model returned, for error messages.
            only: Name of the task that the model was run for: losses of other tasks may be
                missing, and are left out.

        Raises:
            KeyError: No task or more than one task claims a term, or a pattern matches no term.
        """
        if any(name not in self._task_of for name in losses) or any(self._unmatched.values()):
            self._check(losses, untrained, only)
        terms: dict[str, list[Any]] = {task: [] for task in self._patterns or losses}
        for name, loss in losses.items():
            terms[self._task_of[name]].append(loss)
        return {
            task: sum(some[1:], some[0])
            for task, some in terms.items()
            if only in (None, task) and any(isinstance(loss, Tensor) for loss in some)
        }

    def task_of(self, name: str) -> str | None:
        """Return the task that a loss of this name belongs to, if exactly one claims the loss."""
        claims = self._claims(name)
        return name if not self._patterns else next(iter(claims)) if len(claims) == 1 else None

    def expect(self, losses: Collection[str]) -> None:
        """Take note of losses that may begin late in the run.

        Args:
            losses: Names of the losses.

        Raises:
            KeyError: No task, or more than one, claims one of ``losses``.
        """
        self.optional = [*self.optional, *losses]
        for name in losses if self._patterns else ():
            self._only_claim(name, f"The model has it, and may return it later. {self._listed}")

    def state_dict(self) -> dict[str, Any]:
        """Return the patterns that have matched nothing yet, with which the check goes on."""
        return {"unmatched": {task: list(some) for task, some in self._unmatched.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; new patterns are checked from the start."""
        check_keys("the losses", state, self.state_dict())
        known = state["unmatched"]
        self._unmatched = {
            task: [p for p in some if p in known.get(task, some)]
            for task, some in self._unmatched.items()
        }
        self._first = set()

    def _claims(self, name: str) -> dict[str, list[str]]:
        """Return the tasks that claim a loss, with the patterns by which they claim it."""
        found = {
            task: [pattern for pattern in patterns if fnmatchcase(name, pattern)]
            for task, patterns in self._patterns.items()
        }
        return {task: patterns for task, patterns in found.items() if patterns}

    def _only_claim(self, name: str, why: str) -> str:
        claims = self._claims(name)
        if len(claims) > 1:
            by = " and ".join(
                f"tasks.{task} ({', '.join(map(repr, claims[task]))})" for task in claims
            )
            raise KeyError(f"tasks: the loss {name!r} is claimed by {by}; it can have one task")
        if not claims:
            raise KeyError(f"tasks: no task claims the loss {name!r}. {why}")
        return next(iter(claims))

    @property
    def _listed(self) -> str:
        return f"The patterns are {self._patterns}"

    def _check(
        self, losses: Mapping[str, Any], untrained: Collection[str], only: str | None
    ) -> None:
        if not self._patterns:
            self._task_of |= {name: name for name in losses}
            return
        for task, patterns in self._unmatched.items():
            self._unmatched[task] = [p for p in patterns if not self._is_matched(p, losses)]
        returned = f"The model returned {list(losses)}; {self._listed.lower()}"
        for name in losses:
            if not self._claims(name):
                self._find_typo(name, losses)
            self._task_of[name] = self._only_claim(name, returned)
        for task, patterns in self._unmatched.items():
            own = [loss for name, loss in losses.items() if self._task_of[name] == task]
            # A head with nothing to do may return zeros for a part of its losses.
            if only not in (None, task):
                continue
            if patterns and (any(map(_is_nonzero, own)) if own else task in self._first):
                self._refuse(task, patterns[0], losses, untrained)
            self._first.discard(task)

    def _is_matched(self, pattern: str, losses: Collection[str]) -> bool:
        # An optional loss is a pattern itself: either of the two may be the wider one.
        return any(fnmatchcase(name, pattern) for name in (*losses, *self.optional)) or any(
            fnmatchcase(pattern, optional) for optional in self.optional
        )

    def _find_typo(self, name: str, losses: Collection[str]) -> None:
        """Refuse a pattern that matches nothing where it may have been meant for ``name``."""
        for task, patterns in self._unmatched.items():
            for pattern in patterns:
                if nearest(pattern, [name]) is not None:
                    hint = suggest(pattern, [name, *losses])
                    raise KeyError(
                        f"tasks.{task}: {pattern!r} matches none of the losses that the model "
                        f"returned, and no task claims {name!r}; {hint}"
                    )

    def _refuse(
        self, task: str, pattern: str, losses: Collection[str], untrained: Collection[str]
    ) -> None:
        meant = [name for name in untrained if fnmatchcase(name, pattern)]
        if meant:
            raise KeyError(
                f"tasks.{task}: {pattern!r} matches {meant[0]!r}, which the model returns but the "
                "framework does not train: 'loss' has to be in the name of a loss"
            )
        raise KeyError(
            f"tasks.{task}: {pattern!r} matches none of the losses that the model returned; "
            f"{suggest(pattern, [*losses, *self.optional])}. Losses that begin late are named in "
            "optional_losses"
        )


def _patterns(key: str, given: Any) -> list[str]:
    patterns = [given] if isinstance(given, str) else given
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(
            f"{key}: expected names of losses, such as 'loss_mask' or ['loss_rpn_*', 'loss_cls'], "
            f"got {given!r}"
        )
    return list(patterns)


def _is_nonzero(loss: Any) -> bool:
    return bool(torch.as_tensor(loss).detach().any())
