"""Checkpoints that a killed run continues from, as if it had not been killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner

from mtl_plugins.random_states import random_states, set_random_states


class AtomicLocalBackend(LocalBackend):
    """MMEngine's backend for local files; a file is there completely or as it was before."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        unfinished = Path(f"{filepath}.unfinished")
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(filepath)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        self.put(obj.encode(encoding), filepath)


register_backend("atomic_local", AtomicLocalBackend, force=True)


@HOOKS.register_module()
class MTLCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, whose last complete checkpoint outlives a kill at any moment.

    * A checkpoint, and the file ``last_checkpoint`` that ``--resume`` reads, are written to another
      file first, and take the place of the old one when they are complete. The oldest checkpoint is
      removed after the newest was written, not before.
    * The states of the random generators (Python, NumPy, PyTorch, the device) of every rank travel
      along, and validation leaves them as they were: a resumed run draws what the uninterrupted one
      would have drawn. Workers of a data loader start their generators anew; with
      ``num_workers=0`` there are no workers.

    Args:
        args: Arguments of ``CheckpointHook``, also by name.

    Examples:
        >>> # In a config:
        >>> default_hooks = dict(checkpoint=dict(type='MTLCheckpointHook', interval=1))
    """

    backend_args: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        unset = self.backend_args is None and self.file_client_args is None
        if unset and "://" not in str(self.out_dir):
            self.backend_args = {"backend": "atomic_local"}
        self._before_val: dict[str, Any] | None = None

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        resumed = runner.iter > 0 and "random_states" in runner.message_hub.runtime_info
        if not resumed:
            return
        states = runner.message_hub.get_info("random_states")
        if len(states) != get_world_size():
            runner.logger.warning(
                f"The checkpoint was written by {len(states)} ranks and this run has "
                f"{get_world_size()}: their random generators start anew."
            )
            return
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            # The first iteration made the iterator of the data loader, with a draw for its seed.
            # The resumed run makes another iterator, which must not draw again.
            runner.train_dataloader.generator = torch.Generator()
        set_random_states(states[get_rank()])

    def before_val(self, runner: Runner) -> None:
        self._before_val = random_states()

    def after_val(self, runner: Runner) -> None:
        if self._before_val is not None:
            set_random_states(self._before_val)

    def _save_checkpoint(self, runner: Runner) -> None:
        runner.message_hub.update_info("random_states", all_gather_object(random_states()))
        super()._save_checkpoint(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        outdated = None
        if self.max_keep_ckpts > 0 and [step] != list(self.keep_ckpt_ids)[-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.keep_ckpt_ids.popleft()
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))

        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        AtomicLocalBackend().put_text(self.last_ckpt, Path(runner.work_dir) / "last_checkpoint")
        if outdated is not None:
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(outdated))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
