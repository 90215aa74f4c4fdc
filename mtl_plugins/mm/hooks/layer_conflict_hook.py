"""Count how often the gradients of the tasks conflict in each layer."""

from __future__ import annotations

from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mtl_plugins.layer_conflicts import LayerConflicts
from mtl_plugins.mm.optim import MTLOptimWrapper
from mtl_plugins.registry import under


@HOOKS.register_module()
class LayerConflictHook(Hook):
    """Hook that counts the conflicts of the tasks in each layer, for ``tools/recon.py``.

    The record is ``layer_conflicts.json`` in the work directory, written with every checkpoint and
    at the end; see :class:`~mtl_plugins.layer_conflicts.LayerConflicts` for the score. Recon trains
    jointly for some epochs with this hook. A method that takes no task gradients pays a backward
    pass a task at every iteration; the parameters are trained unchanged.

    Args:
        threshold: Cosine below which two gradients conflict; Recon has 0.0 on Cityscapes and -0.02
            on NYUv2.
        interval: Iterations between two counts.

    Attributes:
        conflicts: Counter of the conflicts; None before the training.

    Raises:
        TypeError, ValueError: An argument is not valid; or, when training begins, there is no
            ``MTLOptimWrapper`` or the optimizer wrapper takes no gradients of layers.
    """

    priority = "NORMAL"

    def __init__(self, threshold: float = 0.0, interval: int = 1) -> None:
        if not isinstance(interval, int) or interval < 1:
            raise ValueError(
                f"LayerConflictHook.interval: expected an integer of at least 1, got {interval!r}"
            )
        self.threshold, self.interval = threshold, interval
        self.conflicts: LayerConflicts | None = None
        self._resumed: dict[str, Any] | None = None

    def before_train(self, runner: Runner) -> None:
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, MTLOptimWrapper):
            raise TypeError(
                "custom_hooks: LayerConflictHook needs optim_wrapper.type='MTLOptimWrapper' or "
                f"'AmpMTLOptimWrapper', found {type(wrapper).__name__!r}"
            )
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        with under("LayerConflictHook", ("threshold",)):
            self.conflicts = LayerConflicts(model, self.threshold)
            if self._resumed is not None:
                self.conflicts.load_state_dict(self._resumed)
        assert wrapper.multitask is not None
        with under("optim_wrapper", ("aggregator", "level", "low_memory", "gramian")):
            wrapper.multitask.watch_layers(self.conflicts)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if (runner.iter + 1) % self.interval == 0:
            runner.optim_wrapper.multitask.monitor_layers = True

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if self.conflicts is not None:
            checkpoint["layer_conflicts"] = self.conflicts.state_dict()
            self._write(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if runner._resume:  # weights alone begin a new count
            self._resumed = checkpoint.get("layer_conflicts")

    def after_train(self, runner: Runner) -> None:
        self._write(runner)
        if self.conflicts is not None:
            worst = list(self.conflicts.scores().items())[:3]
            runner.logger.info(
                f"Conflicts of {self.conflicts.steps} steps by layer, worst first: {worst}; "
                "tools/recon.py reads layer_conflicts.json"
            )

    def _write(self, runner: Runner) -> None:
        if is_main_process() and self.conflicts is not None:
            self.conflicts.write(runner.work_dir, runner.optim_wrapper.multitask.tasks)
