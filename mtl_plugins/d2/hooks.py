"""Hooks of the trainers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from mtl_plugins.features import find_module
from mtl_plugins.layer_conflicts import LayerConflicts
from mtl_plugins.random_states import random_states, set_random_states
from mtl_plugins.recorder import Recorder
from mtl_plugins.registry import under
from mtl_plugins.state import check_keys

logger = logging.getLogger(__name__)


class TaskInterferenceHook(HookBase):
    """Hook that logs how far the gradients of the tasks agree, and the losses and weights.

    The scalars go into the ``EventStorage``, under the names of the OpenMMLab adapter: ``mtl/gds``,
    ``mtl/loss/<task>`` and so on. Gradients that the method has computed are reused. Others cost up
    to one backward pass a task on the iterations that are logged, and the parameters are trained
    unchanged. The hook needs a trainer with a ``multitask``.

    Args:
        interval: Iterations between two records. Detectron2's writers write the last record every
            20 iterations.
        measures: Names of measures: ``"gds"``, ``"gms"``, ``"angles"`` and ``"fd"``.
        representation: Path of the module whose output the tasks share, for ``"fd"``; at the
            feature level the representation of ``multitask`` is taken.
        patience: Iterations without a loss or a gradient after which a task is warned of, once.

    Attributes:
        recorder: Recorder that decides when to measure, and keeps the tasks that took part.

    Raises:
        TypeError, ValueError: An argument is not valid.
    """

    def __init__(
        self,
        interval: int = 20,
        measures: Sequence[str] = ("gds", "gms", "angles"),
        representation: str = "backbone",
        patience: int = 1000,
    ) -> None:
        keys = ("MTL.MONITOR.INTERVAL", "MTL.MONITOR.MEASURES")
        self.recorder = Recorder(interval, measures, *keys)
        self.representation = representation
        self.patience = patience

    def before_train(self) -> None:
        if "fd" in self.recorder.measures:
            model = self.trainer.model
            model = model.module if isinstance(model, DistributedDataParallel) else model
            module = find_module(model, self.representation, "MTL.REPRESENTATION")
            self.trainer.multitask.watch(module)

    def before_step(self) -> None:
        self.recorder.before_step(self.trainer.multitask, self.trainer.iter + 1)

    def after_step(self) -> None:
        multitask = self.trainer.multitask
        if scalars := self.recorder.after_step(multitask):
            self.trainer.storage.put_scalars(smoothing_hint=False, **scalars)
        if (self.trainer.iter + 1) % self.patience == 0:
            for warning in self.recorder.absent(multitask, f"{self.patience} iterations"):
                logger.warning(warning)


class LayerConflictHook(HookBase):
    """Hook that counts how often the gradients of the tasks conflict in each layer (Recon).

    The record is ``layer_conflicts.json``, see
    :class:`~mtl_plugins.layer_conflicts.LayerConflicts`. A method that takes no task gradients pays
    a backward pass a task at every iteration; the parameters are trained unchanged.

    Args:
        folder: Folder for the record.
        threshold: Cosine below which two gradients conflict.
        period: Iterations after which the record is written, beside the end.
        interval: Iterations between two counts.
    """

    def __init__(
        self, folder: str, threshold: float = 0.0, period: int = 1000, interval: int = 1
    ) -> None:
        self.folder, self.threshold = folder, threshold
        self.period, self.interval = period, interval
        self.conflicts: LayerConflicts | None = None
        self._resumed: dict[str, Any] | None = None

    def before_train(self) -> None:
        model = self.trainer.model
        model = model.module if isinstance(model, DistributedDataParallel) else model
        with under(
            "MTL.MONITOR.LAYERS", ("threshold", "aggregator", "level", "low_memory", "gramian")
        ):
            self.conflicts = LayerConflicts(model, self.threshold)
            if self._resumed is not None:
                self.conflicts.load_state_dict(self._resumed)
            self.trainer.multitask.watch_layers(self.conflicts)

    def before_step(self) -> None:
        self.trainer.multitask.monitor_layers = (self.trainer.iter + 1) % self.interval == 0

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0:
            self._write()

    def after_train(self) -> None:
        self._write()

    def _write(self) -> None:
        if comm.is_main_process() and self.conflicts is not None:
            self.conflicts.write(self.folder, self.trainer.multitask.tasks)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.conflicts is None else self.conflicts.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counts; before training begins they wait for the model."""
        self._resumed = state or None


class RandomStates(HookBase):
    """Hook that puts the random generators of all ranks into a checkpoint, for a resumed run.

    Args:
        period: Iterations between two checkpoints.
    """

    def __init__(self, period: int) -> None:
        self.period = period
        self._here: dict[str, Any] | None = None  # for the next iteration to start with
        self._everywhere: list[dict[str, Any]] = []

    def before_step(self) -> None:
        # Draws between two steps, such as in an evaluation, happen in only one of two runs.
        if self._here is not None:
            set_random_states(self._here)
            self._here = None

    def after_step(self) -> None:
        step = self.trainer.iter + 1
        if step % self.period == 0 or step == self.trainer.max_iter:
            self._here = random_states()
            self._everywhere = comm.gather(self._here)

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": self._everywhere}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the generators of this rank; with another number of ranks, they start anew."""
        check_keys(type(self).__name__, state, self.state_dict())
        if len(state["ranks"]) == comm.get_world_size():
            self._here = state["ranks"][comm.get_rank()]
