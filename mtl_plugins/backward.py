"""The pipeline: losses, weighting, task gradients, aggregation, ``.grad``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mtl_plugins.aggregation import Aggregator, GramianAggregator, build_aggregator
from mtl_plugins.distributed import average, average_grads, gather, world_size
from mtl_plugins.gradients import (
    NOBODY,
    SEVERAL,
    Representation,
    TaskRows,
    combine,
    common_owner,
    gramian_of,
    owners,
)
from mtl_plugins.weighting import Weighting, build_weighting

Level = Literal["parameter", "feature"]


@dataclass(frozen=True)
class Step:
    """What one step computed, for hooks. Nothing in it is attached to the graph.

    Attributes:
        tasks: The ``T`` tasks that took part.
        losses: ``[T]``, as given, on the device of the losses.
        weights: ``[T]``, the factor of each loss in the update of what the tasks share; None if the
            aggregator combines the gradients in another way.
        gramian: ``[T, T]`` of the (weighted) losses' gradients, on the CPU; None if not computed.
    """

    tasks: tuple[str, ...]
    losses: Tensor
    weights: Tensor | None
    gramian: Tensor | None


class MultiTaskBackward:
    """Replaces ``loss.backward()`` where there are several losses.

    Every parameter that several tasks share gets the aggregated gradient; a parameter that one task
    alone reaches gets that task's own. Both are added to ``.grad``, as ``backward()`` does.

    Args:
        params: The parameters to train. Those that require no gradient are left alone while they
            do not.
        aggregator: Name, ``dict(type=name, ...)`` or an :class:`Aggregator`.
        weighting: Name, ``dict(type=name, ...)`` or a :class:`Weighting` of the losses, before
            anything else; None for none.
        level: ``"parameter"`` aggregates the gradients of the shared parameters, at the cost of
            one backward pass through the shared part a task; ``"feature"`` aggregates those of
            ``representation`` and then runs what lies before it back once.
        representation: With ``level="feature"``, the module whose output the tasks share.
        tasks: Names of all tasks; they are numbered as they appear otherwise. Needed in a
            data-parallel run where a rank's first batch may lack a task.

    In a data-parallel run (:mod:`torch.distributed` with several ranks) call the model without the
    synchronisation of its wrapper (``no_sync()``): the task gradients are averaged over the ranks
    here, before they are aggregated. Only a method that takes no task gradients leaves that to the
    wrapper, see :meth:`synchronizes`.

    Attributes:
        last: The :class:`Step` taken last; None before the first.
        monitor: Set it to have the next step compute the Gramian even where the method does not
            need it. That costs a backward pass per task, and changes no ``.grad``.

    Examples:
        >>> backward = MultiTaskBackward(model.parameters(), aggregator="PCGrad")
        >>> optimizer.zero_grad()
        >>> backward({"detection": loss_detection, "mask": loss_mask})
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        aggregator: str | Mapping[str, Any] | Aggregator = "Sum",
        weighting: str | Mapping[str, Any] | Weighting | None = None,
        level: Level = "parameter",
        representation: nn.Module | None = None,
        tasks: Sequence[str] = (),
    ) -> None:
        if level not in get_args(Level):
            raise ValueError(f"level: expected one of {get_args(Level)}, got {level!r}")
        if (level == "feature") != (representation is not None):
            raise ValueError(
                f"representation: level={level!r} "
                + ("needs the module" if level == "feature" else "takes no module")
                + " whose output the tasks share"
            )
        self.params = list(params)
        if not any(p.requires_grad for p in self.params):
            raise ValueError("params: no parameter requires a gradient")
        self.aggregator = build_aggregator(aggregator)
        self.weighting = None if weighting is None else build_weighting(weighting)
        self.level = level
        self.representation = None if representation is None else Representation(representation)
        self.tasks = list(tasks)
        self.last: Step | None = None
        self.monitor = False
        self._rows = TaskRows()
        # Task that alone reached a parameter so far. What was shared once stays in the buffer: a
        # batch without some task is no reason to lay it out anew.
        self._owner = [NOBODY] * len(self.params)
        self._reached: set[int] = set()  # parameters, by number, since the last aggregation
        # Losses since the last aggregation, and whether more of them are to come.
        self._losses: dict[str, Tensor] = {}
        self._values = torch.zeros(0)
        self._collecting = False

    def __call__(
        self, losses: Mapping[str, Tensor], scale: float = 1.0, aggregate: bool = True
    ) -> None:
        """Adds the gradients of this step to ``.grad``.

        Args:
            losses: Scalar loss of each task. A task may be absent, or its loss be a constant: it
                then takes no part in this step.
            scale: What a loss scaler multiplies the gradients by. They stay scaled in ``.grad``;
                the aggregator sees them unscaled.
            aggregate: False for all but the last of several micro-batches: the gradients of the
                tasks add up, and are aggregated once. At the feature level every micro-batch has
                features of its own and is aggregated by itself.

        Raises:
            ValueError: No loss requires a gradient, a loss is not a scalar, or no representation
                was computed.
        """
        self._check(losses)
        raw = {name: loss for name, loss in losses.items() if loss.requires_grad}
        self.tasks += [name for name in raw if name not in self.tasks]
        factors = {} if self.weighting is None else self.weighting.weights(raw)
        weighted = {name: factors[name] * loss for name, loss in raw.items()} if factors else raw
        synchronizes = self.synchronizes(aggregate)
        self._add_up(raw, synchronizes)
        # Under autocast the Gramian and the weighted sum would be taken in half precision.
        with torch.autocast(self._values.device.type, enabled=False):
            if not self.aggregator.needs_gradients:
                weights, gramian = self._one_pass(weighted, scale, self.monitor and aggregate)
            elif self.representation is not None:
                weights, gramian = self._feature_level(self.representation, weighted, scale)
            else:
                weights, gramian = self._parameter_level(weighted, scale, aggregate)
        self._collecting = not aggregate
        if not aggregate:
            return
        if synchronizes:
            done = {id(leaf) for leaf in self._rows.leaves}
            average_grads([p for p in self.params if id(p) not in done])
        self.monitor = False
        if weights is not None and factors:
            weights = weights * torch.tensor(
                [float(factors.get(name, 0.0)) for name in self._losses]
            )
        self.last = Step(tuple(self._losses), self._values, weights, gramian)

    def synchronizes(self, aggregate: bool = True) -> bool:
        """Whether a call averages over the ranks, so that the model's wrapper must not.

        Args:
            aggregate: That of the call.
        """
        takes_gradients = self.aggregator.needs_gradients or self.representation is not None
        return world_size() > 1 and (takes_gradients or (self.monitor and aggregate))

    def _add_up(self, losses: Mapping[str, Tensor], synchronizes: bool) -> None:
        """Sums the losses since the last aggregation, for the method and for :attr:`last`."""
        if not self._collecting:
            self._losses = {}
        for name, loss in losses.items():
            value = loss.detach().float().reshape(())
            self._losses[name] = self._losses[name] + value if name in self._losses else value
        if synchronizes:
            # Another rank may have a task that this one lacks: all take part with all.
            zero = torch.zeros_like(next(iter(self._losses.values())))
            self._losses = {name: self._losses.get(name, zero) for name in self.tasks}
        values = torch.stack(list(self._losses.values()))
        self._values = average(values) if synchronizes else values

    def _check(self, losses: Mapping[str, Tensor]) -> None:
        for name, loss in losses.items():
            if loss.numel() != 1:
                raise ValueError(
                    f"losses: {name!r} has the shape {tuple(loss.shape)}, expected a scalar"
                )
        if not any(loss.requires_grad for loss in losses.values()):
            raise ValueError(
                f"losses: none of {list(losses)} requires a gradient; is every parameter frozen?"
            )
        if self.representation is not None and not self.representation.leaves:
            raise ValueError(
                "representation: the module was not called in training mode since the last step, "
                "or nothing before it requires a gradient"
            )

    def _one_pass(
        self, losses: Mapping[str, Tensor], scale: float, monitor: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """A backward pass of the weighted sum, for weights that no gradient decides."""
        gramian = self._monitored(losses, scale) if monitor else None
        assert isinstance(self.aggregator, GramianAggregator)
        weights = self.aggregator.weights(torch.zeros(len(losses), len(losses)))
        total = sum(
            loss if w == 1.0 else w * loss
            for w, loss in zip(weights.tolist(), losses.values(), strict=True)
        )
        assert isinstance(total, Tensor)
        _backward(total, scale)
        if self.representation is not None:
            self.representation.backward([leaf.grad for leaf in self.representation.leaves])
        by_name = dict(zip(losses, weights.tolist(), strict=True))
        return torch.tensor([by_name.get(name, 0.0) for name in self._losses]), gramian

    def _monitored(self, losses: Mapping[str, Tensor], scale: float) -> Tensor:
        """The Gramian alone: no ``.grad`` is touched and the graph stays usable."""
        if self.representation is not None:
            leaves: list[Tensor] = list(self.representation.leaves)
        else:
            found = self._find_owners(losses)
            leaves = [p for p, t in zip(self.params, found, strict=True) if t == SEVERAL]
        rows = TaskRows()
        rows.arrange(leaves, len(self.tasks))
        # Not by `inputs=`, which reentrant checkpointing refuses.
        before = [(p, p.grad) for p in self.params]
        try:
            for p in self.params:
                p.grad = None
            self._fill(rows, losses, scale, retain_graph=True)
        finally:
            for p, grad in before:
                p.grad = grad
        return self._gramian(rows.data[self._present()]) / scale**2

    def _feature_level(
        self, representation: Representation, losses: Mapping[str, Tensor], scale: float
    ) -> tuple[Tensor | None, Tensor | None]:
        if self.last is None:
            self._check_cut(representation, losses)
        rows = TaskRows()  # not kept: the next forward pass makes other features
        rows.arrange(representation.leaves, len(self.tasks))
        self._fill(rows, losses, scale)
        update, weights, gramian = self._aggregate(rows.data, scale)
        representation.backward(rows.split(update))
        return weights, gramian

    def _check_cut(self, representation: Representation, losses: Mapping[str, Tensor]) -> None:
        """The losses must reach what lies before the representation through it alone."""
        behind = owners(representation.outputs, self.params)
        for name, loss in losses.items():
            around = owners([loss], self.params)
            if any(a != NOBODY and b != NOBODY for a, b in zip(around, behind, strict=True)):
                raise ValueError(
                    f"representation: the loss of task {name!r} reaches parameters before the "
                    "module by another way. Choose a module that all losses go through, such as "
                    "the backbone"
                )

    def _parameter_level(
        self, losses: Mapping[str, Tensor], scale: float, aggregate: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        self._lay_out(losses)
        self._fill(self._rows, losses, scale)
        if not aggregate:
            return None, None
        update, weights, gramian = self._aggregate(self._rows.data, scale)
        reached = {id(self.params[i]) for i in self._reached}
        for p, grad in zip(self._rows.leaves, self._rows.split(update), strict=True):
            if id(p) in reached:  # else, as after any backward pass, there is no gradient
                p.grad = grad if p.grad is None else p.grad.add_(grad)
        return weights, gramian

    def _fill(
        self,
        rows: TaskRows,
        losses: Mapping[str, Tensor],
        scale: float,
        retain_graph: bool = False,
    ) -> None:
        """Runs each task back into its row."""
        with rows.bound() as bind:
            for t, (name, loss) in enumerate(losses.items()):
                bind(self.tasks.index(name))
                _backward(loss, scale, retain_graph=retain_graph or t + 1 < len(losses))

    def _find_owners(self, losses: Mapping[str, Tensor]) -> list[int]:
        """The task that alone reaches each parameter, on any rank."""
        index = [self.tasks.index(name) for name in losses]
        found = owners(list(losses.values()), self.params)
        mine = [index[t] if t >= 0 else t for t in found]
        return [common_owner(ranks) for ranks in gather(mine, self.params[0].device)]

    def _lay_out(self, losses: Mapping[str, Tensor]) -> None:
        """Makes the buffer hold what is shared."""
        before, found = self._owner, self._find_owners(losses)
        self._owner = [common_owner(pair) for pair in zip(before, found, strict=True)]
        if not self._collecting:
            self._reached = set()
        self._reached |= {i for i, t in enumerate(found) if t != NOBODY}
        shared = [p for p, t in zip(self.params, self._owner, strict=True) if t == SEVERAL]
        if not self._collecting:
            self._rows.arrange(shared, len(self.tasks))
        elif len(shared) > len(self._rows.leaves) or len(self.tasks) > len(self._rows.data):
            held, self._rows = self._rows, TaskRows()
            self._rows.arrange(shared, len(self.tasks))
            self._rows.add(held)
            # What a task had alone in the micro-batches before lies in .grad, and moves to its row.
            alone = {id(p): t for p, t in zip(self.params, before, strict=True) if t >= 0}
            for i, p in enumerate(shared):
                if id(p) in alone and p.grad is not None:
                    self._rows.views[alone[id(p)]][i].add_(p.grad)
                    p.grad = None

    def _present(self) -> list[int]:
        """Rows of the tasks that take part; those of the others are zero."""
        return [self.tasks.index(name) for name in self._losses]

    def _gramian(self, rows: Tensor) -> Tensor:
        """Of the whole batch, over all ranks."""
        if self.representation is None:
            return gramian_of(average(rows))
        # Every rank has features of its own, and its share of the mean loss.
        return gramian_of(rows, ranks=world_size())

    def _aggregate(self, rows: Tensor, scale: float) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The update ``[D]``, the weights ``[T]`` and the Gramian ``[T, T]`` of the rows."""
        present = self._present()
        if len(present) < len(self.tasks):
            rows = rows[present]
        gramian = self._gramian(rows) / scale**2
        if not isinstance(self.aggregator, GramianAggregator):
            return self.aggregator(rows), None, gramian
        if not gramian.isfinite().all():
            # The sum is not finite either: a loss scaler sees that and skips the step.
            return rows.sum(dim=0), torch.ones(len(present)), gramian
        # A task without a gradient, for want of examples in this batch, has no say.
        active = [i for i in range(len(present)) if gramian[i, i] > 0.0]
        weights = torch.zeros(len(present), dtype=gramian.dtype)
        if active:
            weights[active] = self.aggregator.weights(
                gramian[active][:, active],
                losses=self._values[active],
                tasks=[present[i] for i in active],
            )
        return combine(weights, rows), weights, gramian

    def state_dict(self) -> dict[str, Any]:
        """The state of the method: to continue as if there had been no interruption."""
        state: dict[str, Any] = {
            "tasks": list(self.tasks),
            "owner": list(self._owner),
            "aggregator": {
                "type": type(self.aggregator).__name__,
                "state": self.aggregator.state_dict(),
            },
        }
        if self.weighting is not None:
            state["weighting"] = {
                "type": type(self.weighting).__name__,
                "state": self.weighting.state_dict(),
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            ValueError: It was written with another aggregator, weighting or other tasks.
        """
        parts: dict[str, Aggregator | Weighting | None] = {
            "aggregator": self.aggregator,
            "weighting": self.weighting,
        }
        for key, part in parts.items():
            here = None if part is None else type(part).__name__
            there = state[key]["type"] if key in state else None
            if here != there:
                raise ValueError(
                    f"{key}: the checkpoint was written with {there}, this run uses {here}"
                )
        if self.tasks and list(state["tasks"]) != self.tasks:
            raise ValueError(
                f"tasks: the checkpoint has {state['tasks']}, this run has {self.tasks}"
            )
        if len(state["owner"]) != len(self.params):
            raise ValueError(
                f"params: the checkpoint has {len(state['owner'])}, this run has {len(self.params)}"
            )
        self.tasks = list(state["tasks"])
        self._owner = list(state["owner"])
        for key, part in parts.items():
            if part is not None:
                part.load_state_dict(state[key]["state"])


def _backward(loss: Tensor, scale: float, retain_graph: bool = False) -> None:
    loss.backward(None if scale == 1.0 else torch.full_like(loss, scale), retain_graph=retain_graph)
