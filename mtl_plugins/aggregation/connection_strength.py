"""Connection strength: channels learn which task they serve, and then keep to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mtl_plugins.aggregation.base import Aggregator, GramianAggregator
from mtl_plugins.connection_strength import (
    OneTop,
    outputs_first,
    project_groups,
    shares,
    top_tasks,
    variances,
)
from mtl_plugins.distributed import average
from mtl_plugins.draws import RandomMethod
from mtl_plugins.gradients import combine, dense_strides, gramian_of
from mtl_plugins.registry import suggest
from mtl_plugins.task_norm import TaskBatchNorm, TaskNorm, task_norm

Phase = Literal["mix", "sequential", "alternate", 1, 2]
Draw = Literal["epoch", "step"]

__all__ = ["ConnectionStrength"]


class ConnectionStrength(RandomMethod, Aggregator):
    r"""Connection strength-based optimization (paper D, algorithm 1).

    Phase 1 is :class:`Sequential`: a step of the optimizer for each task in turn. In phase 2, each
    output channel of a shared convolution belongs to the task with the largest normalised
    connection strength (eq. 7 and 10); in the channels of a task, the other tasks' gradients that
    conflict with its own lose the part along it, and then all are summed. A convolution that some
    task does not reach, and everything else, gets the plain sum.

    At epoch e of E, from 0, phase 1 comes if :math:`P \ge e / E` with :math:`P \sim U(0, 1)`. In a
    run that counts iterations, a hundredth of it stands for an epoch.

    The model needs a batch norm a task behind its shared convolutions:
    :func:`~mtl_plugins.task_norm.convert_task_norm`, in a config ``model.task_norm``. In a
    data-parallel run, the strength is of the running variances' mean over the ranks.

    Args:
        phase: ``"mix"`` of both as above; one of the phases, 1 or 2, alone; or one after the other
            (D Table 4): ``"sequential"``, phase 1 in the first half of the epochs and phase 2 in
            the second, or ``"alternate"``, by turns. The paper has one such row and does not say
            which; by its text, phase 1 comes late in training, too, as with ``"alternate"``.
        draw: Time for which P is drawn, or phases alternate: an ``"epoch"``, as in the paper, or a
            ``"step"``, as in the published code.
        one_top: Rule for a layer whose channels all belong to one task: ``"project"`` as in the
            paper, or the plain ``"sum"`` as in the published code.
        base: Method that takes the steps of phase 2 in place of the projection, such as
            ``"PCGrad"``: name, ``dict(type=name, ...)`` or a :class:`GramianAggregator`. The model
            then needs no norms of each task.
        seed: Seed of the draws; None takes the seed of the run.
    """

    scale = "sum"
    of_features = False
    takes_turns = True

    def __init__(
        self,
        phase: Phase = "mix",
        draw: Draw = "epoch",
        one_top: OneTop = "project",
        base: str | Mapping[str, Any] | GramianAggregator | None = None,
        seed: int | None = None,
    ) -> None:
        from mtl_plugins.aggregation import build_aggregator  # imports this class

        super().__init__(seed)
        for key, value, valid in (
            ("phase", phase, Phase),
            ("draw", draw, Draw),
            ("one_top", one_top, OneTop),
        ):
            if value not in get_args(valid):
                raise ValueError(f"{key}: expected one of {get_args(valid)}, got {value!r}")
        self.phase, self.draw, self.one_top = phase, draw, one_top
        self.takes_turns = phase != 2
        built = None if base is None else build_aggregator(base)
        if built is not None and (
            not isinstance(built, GramianAggregator)
            or built.scales_own
            or built.remembers_rows
            or not built.of_parameters
        ):
            raise ValueError(
                "base: expected a method that weighs the gradients of what tasks share, got "
                f"{type(built).__name__}"
            )
        self.base = built
        self._step = 0
        self._drawn = 0.0  # P, until the next draw
        self._norm: TaskNorm | None = None
        self._tasks: Sequence[str] = ()

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict() | {"step": self._step, "drawn": self._drawn}
        return state if self.base is None else state | {"base": self.base.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._step, self._drawn = state["step"], state["drawn"]
        if self.base is not None:
            self.base.load_state_dict(state["base"])

    def meet(self, model: nn.Module, tasks: Sequence[str]) -> None:
        if self.base is not None:
            self.base.meet(model, tasks)
            return
        if not any(isinstance(part, TaskBatchNorm) for part in model.modules()):
            raise ValueError(
                f"aggregator: ConnectionStrength needs one batch norm a task, and "
                f"{type(model).__name__} has none: call mtl_plugins.task_norm.convert_task_norm, "
                "in a config of OpenMMLab model=dict(task_norm=dict(), ...) of MultiTaskSegmentor "
                "or SemanticDetector, or model.type='TaskNormMaskRCNN' in place of 'MaskRCNN'"
            )
        self._norm, self._tasks = task_norm(model), tasks
        for norm in self._norm.norms.values():
            variances(norm)  # raise an error before the first step
        if set(tasks) != set(self._norm.tasks):
            raise ValueError(
                f"tasks: ConnectionStrength needs the tasks of the model's norms, "
                f"{list(self._norm.tasks)}, got {list(tasks) or 'every loss as a task'}; "
                f"{suggest(next(iter(set(tasks) - set(self._norm.tasks)), ''), self._norm.tasks)}"
            )

    def begin(self) -> bool:
        if self.phase in (1, 2):
            return self.phase == 1
        if self.total_steps is None:
            raise ValueError(
                "aggregator: ConnectionStrength needs to know how many steps the run takes: "
                "MultiTaskBackward.total_steps is not set"
            )
        length = self.steps_per_epoch or max(1, self.total_steps // 100)
        epochs = math.ceil(self.total_steps / length)
        epoch, step = divmod(self._step, length)
        self._step += 1
        if self.phase == "sequential":
            return epoch < epochs / 2
        if self.phase == "alternate":
            return (epoch if self.draw == "epoch" else self._step - 1) % 2 == 0
        if self.draw == "step" or step == 0:
            self._drawn = float(torch.rand((), generator=self.generator(), dtype=torch.float64))
        return self._drawn >= epoch / epochs

    def __call__(self, jacobian: Tensor, tasks: Sequence[int] | None = None) -> Tensor:
        return jacobian.sum(0) if self.base is None else self.base(jacobian, tasks)

    def on_parameters(
        self,
        jacobian: Tensor,
        parameters: Sequence[Tensor],
        tasks: Sequence[int] | None = None,
        losses: Tensor | None = None,
    ) -> Tensor:
        if self.base is not None:
            self.base.total_steps, self.base.steps_per_epoch = (
                self.total_steps,
                self.steps_per_epoch,
            )
            weights = self.base.weights(gramian_of(jacobian), losses, tasks)
            return combine(weights, jacobian)
        if self._norm is None:
            raise RuntimeError(
                "aggregator: ConnectionStrength does not know the model; call "
                "MultiTaskBackward.protect(model) before the first step"
            )
        update = jacobian.sum(0)
        names = [self._tasks[t] for t in (range(len(jacobian)) if tasks is None else tasks)]
        if set(names) != set(self._norm.tasks):
            return update
        rows = [jacobian[names.index(task)] for task in self._norm.tasks]
        layers = {id(norm.conv.weight): norm for norm in self._norm.norms.values()}
        variance = self._variances()
        ends = accumulate(p.numel() for p in parameters)
        for p, end in zip(parameters, ends, strict=True):
            if (layer := layers.get(id(p))) is None:
                continue
            columns = slice(end - p.numel(), end)
            found, *each = (
                flat[columns].as_strided(p.shape, dense_strides(p)) for flat in (update, *rows)
            )
            gradients = torch.stack([outputs_first(layer.conv, row) for row in each])
            top = top_tasks(shares(layer, variance[id(p)]))
            projected = outputs_first(layer.conv, project_groups(gradients, top, self.one_top))
            reached = gradients.flatten(1).any(1).all()
            found.copy_(torch.where(reached, projected, found))
        return update

    def _variances(self) -> dict[int, Tensor]:
        """Return the running variances of each norm by its convolution's weights, of all ranks."""
        assert self._norm is not None
        found = {id(n.conv.weight): variances(n) for n in self._norm.norms.values()}
        flat = average(torch.cat([v.flatten() for v in found.values()]))
        parts = flat.split([v.numel() for v in found.values()])
        return {key: part.view_as(v) for (key, v), part in zip(found.items(), parts, strict=True)}
