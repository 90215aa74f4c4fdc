"""The length of an epoch, for ``mtl-compare``."""

from __future__ import annotations

from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from mtl_plugins.compare.timing import EPOCH_LENGTH


@HOOKS.register_module()
class EpochLengthHook(Hook):
    """Writes the iterations of an epoch, of a training by epochs, to a file in the work directory.

    ``mtl-compare --equal-time`` adds the hook: how long an epoch is depends on data set, sampler
    and number of GPUs, which only the training knows together.
    """

    def before_train(self, runner: Runner) -> None:
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and is_main_process():
            length = len(runner.train_loop.dataloader)
            Path(runner.work_dir, EPOCH_LENGTH).write_text(str(length))
