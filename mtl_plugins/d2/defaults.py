"""Detectron2's ``DefaultTrainer`` with task gradients."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from mtl_plugins import MultiTaskBackward
from mtl_plugins.d2.allocation import AllocatedLoader, AllocationGates
from mtl_plugins.d2.config import build_groups, build_multitask, naming_keys
from mtl_plugins.d2.data import TrainLoader
from mtl_plugins.d2.hooks import LayerConflictHook, RandomStates, TaskInterferenceHook
from mtl_plugins.d2.indicators import IndicatorHook
from mtl_plugins.d2.train_loop import RESUME, MTLAMPTrainer, MTLSimpleTrainer

logger = logging.getLogger(__name__)


class MTLTrainer(DefaultTrainer):
    """``DefaultTrainer`` that does what the node ``MTL`` of its config says.

    A checkpoint holds optimizer, method and random generators, so that a resumed run continues as
    the uninterrupted one would have. The trainer works in several processes without CUDA, too. A
    subclass may override whatever a subclass of ``DefaultTrainer`` may.

    Args:
        cfg: Config of Detectron2, with the node that :func:`~mtl_plugins.d2.add_mtl_config` adds.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's constructor makes its own trainer, and puts no CPU model into DDP.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.groups = build_groups(cfg)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        multitask = build_multitask(cfg, model, optimizer, self.groups)
        data_loader = self.build_train_loader(cfg)
        gates = None
        if cfg.MTL.ALLOCATION.NAME:
            data_loader = AllocatedLoader(cfg, data_loader)
            gates = AllocationGates(model, self.groups)

        on_gpu = next(model.parameters()).is_cuda
        devices = {} if on_gpu else {"device_ids": None}
        model = create_ddp_model(model, broadcast_buffers=False, **devices)
        trainer = MTLAMPTrainer if cfg.SOLVER.AMP.ENABLED else MTLSimpleTrainer
        with naming_keys():
            self._trainer = trainer(
                model, data_loader, optimizer, multitask, self.groups, gates=gates
            )

        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self._restored = False
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @property
    def multitask(self) -> MultiTaskBackward:
        """Object that takes the place of ``losses.backward()``."""
        return self._trainer.multitask

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        return TrainLoader(cfg)

    def build_hooks(self) -> list[HookBase | None]:
        """Return Detectron2's hooks, ours after the timer and one at the end."""
        timer, *others = super().build_hooks()
        mtl = self.cfg.MTL
        ours: list[HookBase] = [RandomStates(self.cfg.SOLVER.CHECKPOINT_PERIOD)]
        if mtl.MONITOR.INTERVAL:
            interval, measures = mtl.MONITOR.INTERVAL, mtl.MONITOR.MEASURES
            ours.append(TaskInterferenceHook(interval, measures, mtl.REPRESENTATION))
        if mtl.MONITOR.LAYERS:
            threshold, period = mtl.MONITOR.LAYER_THRESHOLD, self.cfg.SOLVER.CHECKPOINT_PERIOD
            ours.append(LayerConflictHook(self.cfg.OUTPUT_DIR, threshold, period))
        weighting = self.multitask.weighting
        if weighting is not None and weighting.needs_indicators:
            with naming_keys():
                others.append(IndicatorHook(self.cfg, weighting, self.groups))
        return [timer, *ours, *others]

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint, or the weights of the config.

        Args:
            resume: Whether the last checkpoint is loaded, if there is one.

        Raises:
            KeyError, ValueError: The checkpoint was written by another method, or without one.
        """
        self._restored = False
        super().resume_or_load(resume)
        if resume and self.checkpointer.has_checkpoint() and not self._restored:
            logger.warning(
                "%s: %s loaded weights from %s, but not the state of the trainer. The run starts "
                "at iteration %d, with a new optimizer and a new state of the method; to resume, "
                "build the checkpointer with trainer=weakref.proxy(trainer), as MTLTrainer does",
                RESUME.switch,
                type(self.checkpointer).__name__,
                self.checkpointer.get_checkpoint_file(),
                self.start_iter,
            )
        # A loader of another class, which a subclass may build, begins anew.
        if isinstance(self.data_loader, (TrainLoader, AllocatedLoader)):
            self.data_loader.start = self.start_iter

    def run_step(self) -> None:
        with naming_keys():
            super().run_step()

    # In version 0.6, DefaultTrainer's methods leave the state of the inner trainer out.
    def state_dict(self) -> dict[str, Any]:
        return TrainerBase.state_dict(self) | {"_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        TrainerBase.load_state_dict(self, state_dict)
        with naming_keys():
            self._trainer.load_state_dict(state_dict.get("_trainer", {}))
        self._restored = True
