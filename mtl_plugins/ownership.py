"""Ownership of parameters: shared by several tasks, or of one task alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtl_plugins.distributed import gather, world_size
from mtl_plugins.graph import LossGraph
from mtl_plugins.nodes import HIDDEN, NOBODY, SEVERAL, common_owner


class Ownership:
    """Knows the owner of each parameter: a task, :data:`SEVERAL` or :data:`NOBODY`.

    The graph says which losses reach a parameter. A parameter that several losses reached once
    stays in common: a batch without some task is no reason to change that.

    A graph whose losses meet in one node (stacked losses, a compiled model, a hook on its output,
    reentrant checkpointing) cannot tell heads from the trunk. The parameters behind such a node are
    *doubtful*, and evidence decides: the task that alone reached a parameter with a gradient that
    was not zero, so far, is the owner.

    Args:
        params: Parameters that are trained; more may be added to the list later.
    """

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        self._params = params
        self._alone = [NOBODY] * len(params)  # by the graph
        self._evident = [NOBODY] * len(params)  # by the gradients; SEVERAL where there is no doubt
        self._reached = [False] * len(params)  # since the window was opened
        self._hidden: set[int] = set()  # since then: a pass will tell whether it reaches them
        self._agreed: tuple[list[int], list[int], list[bool]] | None = None  # by all ranks

    def open_window(self) -> None:
        """Forget which parameters were reached."""
        self._reached = [False] * len(self._params)
        self._hidden = set()

    def make_room(self) -> None:
        """Make room for parameters that were added to the list."""
        new = len(self._params) - len(self._alone)
        self._alone += [NOBODY] * new
        self._evident += [NOBODY] * new
        self._reached += [False] * new

    def look_at(self, graph: LossGraph, tasks: Sequence[int]) -> bool:
        """Learn from the graph of a batch.

        Args:
            graph: Graph of the losses of this rank.
            tasks: Number of each loss's task.

        Returns:
            Whether something is shared, doubtful or reached that the ranks have not agreed on, or
            is not to be known before the passes.
        """
        for i, t in enumerate(graph.owners(self._params)):
            if t == NOBODY:
                continue
            before, here = self._alone[i], tasks[t] if t >= 0 else SEVERAL
            self._alone[i] = common_owner([before, here])
            if t == SEVERAL and self._evident[i] != SEVERAL and graph.tells_heads_apart:
                self._evident[i] = SEVERAL
            elif here != SEVERAL and before >= 0 and before != here and not self._reached[i]:
                self._evident[i] = before  # in an earlier window, whose gradients are gone
            if t == HIDDEN:
                self._hidden.add(i)
            else:
                self._reached[i] = True
        return bool(self._hidden) or (self._alone, self._evident, self._reached) != self._agreed

    @contextmanager
    def noting_arrivals(self) -> Iterator[None]:
        """Learn from passes which of the parameters that checkpointing hides they reach."""
        with ExitStack() as stack:
            for i in self._hidden:
                arrived = partial(self._arrived, i)
                handle = self._params[i].register_post_accumulate_grad_hook(arrived)
                stack.callback(handle.remove)
            yield

    def _arrived(self, i: int, parameter: Tensor) -> None:
        self._reached[i] = True

    def agree(self) -> None:
        """Learn from the other ranks; what only two ranks together share is doubtful at first."""
        if world_size() == 1:
            return
        everyone = gather([*self._alone, *self._evident, *self._reached], self._params[0].device)
        count = len(self._params)
        self._alone = [common_owner(ranks) for ranks in everyone[:count]]
        self._evident = [common_owner(ranks) for ranks in everyone[count : 2 * count]]
        self._reached = [any(ranks) for ranks in everyone[2 * count :]]
        self._agreed = (list(self._alone), list(self._evident), list(self._reached))

    def take_evidence(self, reach: Mapping[int, Iterable[int]]) -> bool:
        """Learn from gradients, the same on every rank.

        Args:
            reach: Tasks whose gradient is not zero, by index of the doubtful parameter.

        Returns:
            Whether a parameter turned out to be shared.
        """
        shared = self.shared
        for i, tasks in reach.items():
            self._evident[i] = common_owner([self._evident[i], *tasks])
        if self._agreed is not None:
            self._agreed = (self._agreed[0], list(self._evident), self._agreed[2])
        return self.shared != shared

    @property
    def shared(self) -> list[int]:
        """Indices of the parameters that several tasks share."""
        return [
            i
            for i, (t, e) in enumerate(zip(self._alone, self._evident, strict=True))
            if t == e == SEVERAL
        ]

    @property
    def in_common(self) -> list[nn.Parameter]:
        """Trained parameters that the graph takes for shared, doubtful or not."""
        pairs = zip(self._params, self._alone, strict=True)
        return [p for p, t in pairs if t == SEVERAL and p.requires_grad]

    @property
    def doubtful(self) -> list[int]:
        """Indices of the parameters that only the graph takes for shared."""
        return [
            i
            for i, (t, e) in enumerate(zip(self._alone, self._evident, strict=True))
            if t == SEVERAL and e != SEVERAL
        ]

    def unsettled(self, tasks: Iterable[int]) -> list[int]:
        """Find the tasks that may turn out to reach more of what is doubtful.

        Args:
            tasks: Numbers of tasks.

        Returns:
            All of them if the owner of something is not known yet, else those that own nothing.
        """
        doubtful = self.doubtful
        if not doubtful:
            return []
        unknown = any(
            self._evident[i] == NOBODY and (self._reached[i] or i in self._hidden) for i in doubtful
        )
        owners = {self.owner(i) for i in range(len(self._params))}
        return [t for t in tasks if unknown or t not in owners]

    def owner(self, i: int) -> int:
        """Return the task that alone owns parameter ``i``, or :data:`SEVERAL` or :data:`NOBODY`."""
        return self._evident[i] if self._alone[i] == SEVERAL else self._alone[i]

    def by_graph(self) -> list[int]:
        """Return the owners as the graph has them, where the doubtful belong to :data:`SEVERAL`."""
        return list(self._alone)

    def reached(self, i: int) -> bool:
        """Tell if a loss reached parameter ``i`` since the window was opened, on any rank.

        Of what checkpointing hides it is known after :meth:`noting_arrivals` and :meth:`agree`.
        """
        return self._reached[i]

    def state_dict(self) -> dict[str, Any]:
        """Return the owners, to go on with them."""
        return {"owner": list(self._alone), "evident": list(self._evident)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: The state is about another number of parameters.
        """
        if len(state["owner"]) != len(self._params):
            raise ValueError(
                f"params: the checkpoint has {len(state['owner'])}, this run has "
                f"{len(self._params)}"
            )
        self._alone, self._evident = list(state["owner"]), list(state["evident"])
        self._reached = [False] * len(self._params)
        self._agreed = None


def reach_of(views: Sequence[Sequence[Tensor]]) -> tuple[list[list[int]], set[int]]:
    """Find which tasks have a gradient that is not zero, on any rank.

    NaN and infinity are no evidence: zero times what overflowed in another task's head is NaN.

    Args:
        views: For each task, its gradient at each of some parameters.

    Returns:
        For each of the parameters, the tasks; and the tasks with a gradient that is not finite.
        The host waits for the device once.
    """
    if not views or not views[0]:
        return [[] for _ in (views[0] if views else ())], set()
    # A tensor without elements has no largest one.
    rows = [[view if view.numel() else view.new_zeros(()) for view in row] for row in views]
    largest = torch.stack([torch.stack(torch._foreach_norm(row, torch.inf)) for row in rows])
    found = (largest != 0).to(torch.int32) + ~largest.isfinite()  # 0, 1, or 2 if not finite
    if world_size() > 1:
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    columns = found.T.tolist()
    reach = [[t for t, flag in enumerate(column) if flag == 1] for column in columns]
    return reach, {t for column in columns for t, flag in enumerate(column) if flag == 2}
