"""Logs how the tasks get on with each other."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mtl_plugins.backward import Step
from mtl_plugins.mm.optim import MTLOptimWrapper
from mtl_plugins.monitors import gradient_direction_similarity, gradient_magnitude_similarity


@HOOKS.register_module()
class TaskInterferenceHook(Hook):
    """Writes GDS, GMS, and the loss and weight of each task to every visualizer backend.

    The scalars are ``mtl/gds``, ``mtl/gms``, ``mtl/loss/<task>`` and ``mtl/weight/<task>``, and
    ``mtl/fallbacks`` once a solver has not converged; with MMEngine's ``LocalVisBackend`` they are
    lines of ``vis_data/scalars.json``. What the method has
    computed is reused. A method that takes no task gradients (the plain sum) pays one backward pass
    a task on the iterations that are logged, and trains on unchanged.

    A task that had no loss, or no gradient, for a whole epoch is warned of, once.

    Args:
        interval: Iterations between two records. With accumulation, the record is of the first
            update after that; its Gramian is that of the last micro-batch if the method itself
            takes no task gradients.
    """

    priority = "NORMAL"

    def __init__(self, interval: int = 10) -> None:
        if interval < 1:
            raise ValueError(f"TaskInterferenceHook.interval is at least 1, got {interval}")
        self.interval = interval
        self._due = False
        self._last: Step | None = None
        self._seen: set[str] = set()  # tasks, since the epoch began
        self._missed: set[str] = set()  # for an epoch, so far

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
        wrapper.multitask.monitor = True

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
        scalars = {
            f"mtl/loss/{task}": value
            for task, value in zip(step.tasks, step.losses.tolist(), strict=True)
        }
        if step.weights is not None:
            for task, value in zip(step.tasks, step.weights.tolist(), strict=True):
                scalars[f"mtl/weight/{task}"] = value
        overflow = step.gramian is not None and not step.gramian.isfinite().all()
        if step.gramian is not None and not overflow and len(step.tasks) > 1:
            scalars["mtl/gds"] = float(gradient_direction_similarity(step.gramian))
            scalars["mtl/gms"] = float(gradient_magnitude_similarity(step.gramian))
        if fallbacks := getattr(runner.optim_wrapper.multitask.aggregator, "fallbacks", 0):
            scalars["mtl/fallbacks"] = fallbacks
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
