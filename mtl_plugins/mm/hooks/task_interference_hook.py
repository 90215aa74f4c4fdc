"""Log how far the gradients of the tasks agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mtl_plugins.connection_strength import top_channels
from mtl_plugins.mm.optim import MTLOptimWrapper
from mtl_plugins.recorder import Recorder
from mtl_plugins.task_norm import TaskBatchNorm, TaskNorm, task_norm


@HOOKS.register_module()
class TaskInterferenceHook(Hook):
    """Hook that logs how far the gradients of the tasks agree, and the losses and weights.

    The scalars are ``mtl/loss/<task>`` and ``mtl/weight/<task>``, ``mtl/penalty`` with a
    regulariser, ``mtl/fallbacks`` once a solver has not converged, the monitors that are asked for,
    and, where tasks have batch norms of their own, ``mtl/top_channels_<task>``, the share of
    channels for which the task has the top priority. Every visualizer backend gets them; with
    MMEngine's ``LocalVisBackend`` they are lines of ``vis_data/scalars.json``. Results that the
    method has computed are reused. Others cost up to one backward pass a task on the iterations
    that are logged, and the parameters are trained unchanged. (With activation checkpointing, batch
    norms in a checkpoint count once more.) A step for each task in turn has no gradients of all
    tasks at the same weights, and so no such monitors.

    A task that had no loss, or no gradient, for a whole epoch is warned of, once.

    Args:
        interval: Iterations between two records. With accumulation, the first update after the
            interval is recorded; its Gramian is the last micro-batch's if the method itself takes
            no task gradients.
        monitors: Names of measures: ``"gds"`` and ``"gms"``, similarity of the gradients'
            directions and magnitudes: ``mtl/gds``, ``mtl/gms``; ``"angles"``, in degrees:
            ``mtl/angle/<task>|<task>``; ``"fd"``, feature disentanglement: ``mtl/fd``.
        representation: Path of the module whose output the tasks share, such as ``'neck'``, for
            ``"fd"``; at the feature level, by default the optimizer wrapper's.

    Attributes:
        recorder: Recorder, which decides when to measure and keeps the tasks that took part.

    Raises:
        TypeError, ValueError: An argument is not valid; or, when training begins, there is no
            ``MTLOptimWrapper`` or ``"fd"`` lacks its representation.
    """

    priority = "NORMAL"

    def __init__(
        self,
        interval: int = 10,
        monitors: Sequence[str] = ("gds", "gms", "angles"),
        representation: str | None = None,
    ) -> None:
        name = type(self).__name__
        self.recorder = Recorder(interval, monitors, f"{name}.interval", f"{name}.monitors")
        self.representation = representation
        self._norm: TaskNorm | None = None

    def before_train(self, runner: Runner) -> None:
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, MTLOptimWrapper):
            raise TypeError(
                "custom_hooks: TaskInterferenceHook needs optim_wrapper.type='MTLOptimWrapper' or "
                f"'AmpMTLOptimWrapper', found {type(wrapper).__name__!r}"
            )
        if any(isinstance(part, TaskBatchNorm) for part in runner.model.modules()):
            self._norm = task_norm(runner.model)
        if "fd" not in self.recorder.measures:
            return
        if self.representation is not None:
            wrapper.watch(runner.model, self.representation)
        elif wrapper.multitask is None or wrapper.multitask.level != "feature":
            raise ValueError(
                "TaskInterferenceHook.representation: monitors has 'fd', which needs the path of "
                "the module whose output the tasks share, such as 'neck'"
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.recorder.before_step(runner.optim_wrapper.multitask, runner.iter + 1)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        multitask = runner.optim_wrapper.multitask
        if scalars := self.recorder.after_step(multitask):
            if self._norm is not None:
                shares = top_channels(self._norm).items()
                scalars |= {f"mtl/top_channels_{task}": share for task, share in shares}
            runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        if self.every_n_train_iters(runner, len(runner.train_dataloader)):
            for warning in self.recorder.absent(multitask, "a whole epoch"):
                runner.logger.warning(warning)
