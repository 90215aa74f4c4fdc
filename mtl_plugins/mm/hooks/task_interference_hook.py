"""Logs how the tasks get on with each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mtl_plugins.mm.optim import MTLOptimWrapper
from mtl_plugins.monitors import check_measures, scalars_of
from mtl_plugins.step import Step


@HOOKS.register_module()
class TaskInterferenceHook(Hook):
    """Writes how the gradients of the tasks get on, and their losses and weights.

    The scalars are ``mtl/loss/<task>`` and ``mtl/weight/<task>``, ``mtl/penalty`` with a
    regulariser, ``mtl/fallbacks`` once a solver has not converged, and the monitors that are asked
    for. Every visualizer backend gets them; with MMEngine's ``LocalVisBackend`` they are lines of
    ``vis_data/scalars.json``. What the method has computed is reused. What it has not costs up to
    one backward pass a task on the iterations that are logged, and the parameters are trained
    unchanged. (With activation checkpointing, batch norms in a checkpoint count once more.)

    A task that had no loss, or no gradient, for a whole epoch is warned of, once.

    Args:
        interval: Iterations between two records. With accumulation, the record is of the first
            update after that; its Gramian is that of the last micro-batch if the method itself
            takes no task gradients.
        monitors: ``"gds"`` and ``"gms"``, similarity of the gradients' directions and magnitudes:
            ``mtl/gds``, ``mtl/gms``; ``"angles"``, in degrees: ``mtl/angle/<task>|<task>``;
            ``"fd"``, feature disentanglement: ``mtl/fd``.
        representation: For ``"fd"``, the path of the module whose output the tasks share, such as
            ``'neck'``; at the feature level it is that of the optimizer wrapper.
    """

    priority = "NORMAL"

    def __init__(
        self,
        interval: int = 10,
        monitors: Sequence[str] = ("gds", "gms", "angles"),
        representation: str | None = None,
    ) -> None:
        if interval < 1:
            raise ValueError(f"TaskInterferenceHook.interval is at least 1, got {interval}")
        check_measures(monitors, "TaskInterferenceHook.monitors")
        self.interval = interval
        self.monitors = tuple(monitors)
        self.representation = representation
        self._due = False
        self._last: Step | None = None
        self._seen: set[str] = set()  # tasks, since the epoch began
        self._missed: set[str] = set()  # for an epoch, so far

    def before_train(self, runner: Runner) -> None:
        wrapper = runner.optim_wrapper
        if "fd" not in self.monitors or not isinstance(wrapper, MTLOptimWrapper):
            return
        if self.representation is not None:
            wrapper.watch(runner.model, self.representation)
        elif wrapper.multitask.level != "feature":
            raise ValueError(
                "TaskInterferenceHook.representation: monitors has 'fd', which needs the path of "
                "the module whose output the tasks share, such as 'neck'"
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._due = self._due or self.every_n_train_iters(runner, self.interval)
        if not self._due:
            return
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, MTLOptimWrapper):
            raise TypeError(
                "custom_hooks: TaskInterferenceHook needs optim_wrapper.type='MTLOptimWrapper' or "
                f"'AmpMTLOptimWrapper', found {type(wrapper).__name__!r}"
            )
        wrapper.multitask.monitor = bool({"gds", "gms", "angles"} & set(self.monitors))
        wrapper.multitask.monitor_features = "fd" in self.monitors

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(runner.optim_wrapper, MTLOptimWrapper):
            return  # an error as soon as something is due
        step = runner.optim_wrapper.multitask.last
        new = step is not self._last  # not in the middle of an accumulation
        self._last = step
        self._watch(runner, step if new else None)
        if step is None or not (new and self._due):
            return
        self._due = False
        fallbacks = getattr(runner.optim_wrapper.multitask.aggregator, "fallbacks", 0)
        scalars = scalars_of(step, self.monitors, fallbacks)
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    def _watch(self, runner: Runner, step: Step | None) -> None:
        """Warns of tasks that did not take part for an epoch of iterations."""
        if step is not None:
            lengths = [1.0] * len(step.tasks) if step.gramian is None else step.gramian.diagonal()
            self._seen |= {t for t, n in zip(step.tasks, lengths, strict=True) if n != 0.0}
        if not self.every_n_train_iters(runner, len(runner.train_dataloader)):
            return
        missing = set(runner.optim_wrapper.multitask.tasks) - self._seen - self._missed
        self._missed |= missing
        self._seen = set()
        for task in sorted(missing):
            runner.logger.warning(
                f"the task {task!r} had no loss or no gradient for a whole epoch: does the data "
                "have examples of it?"
            )
