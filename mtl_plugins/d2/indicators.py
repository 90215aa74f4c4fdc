"""Tell the weighting the results of Detectron2's evaluations."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm

from mtl_plugins.indicators import Indicators
from mtl_plugins.state import check_keys
from mtl_plugins.tasks import TaskGroups
from mtl_plugins.weighting import Weighting

logger = logging.getLogger(__name__)

# Results of Detectron2's evaluators whose tasks are known, for one data set.
OFFERED = ("bbox/AP", "segm/AP", "keypoints/AP", "sem_seg/mIoU")


class IndicatorHook(HookBase):
    """Hook that tells a weighting such as ``DTP`` the results of each evaluation.

    The hook comes after Detectron2's ``EvalHook``, and reads the results from the storage of the
    first rank, which alone has them. Detectron2 writes a checkpoint before it evaluates: a run that
    is resumed from such a one evaluates first, as the uninterrupted run did.

    Args:
        cfg: Config with the node that :func:`~mtl_plugins.d2.add_mtl_config` adds.
        weighting: Weighting that needs indicators.
        groups: Losses of each task.

    Raises:
        KeyError, ValueError: No evaluation comes before the end, or a task has no metric.
    """

    def __init__(self, cfg: CfgNode, weighting: Weighting, groups: TaskGroups) -> None:
        self.period = cfg.TEST.EVAL_PERIOD
        method, end = type(weighting).__name__, cfg.SOLVER.MAX_ITER
        if not cfg.DATASETS.TEST or not 0 < self.period < end:
            raise ValueError(
                f"weighting: {method} goes by the metrics of the evaluation, and none comes before "
                f"the end of the run: expected DATASETS.TEST and TEST.EVAL_PERIOD below {end}, "
                f"found {list(cfg.DATASETS.TEST)} and {self.period}"
            )
        # The names of the results begin with the data set if there are several.
        offered = OFFERED if len(cfg.DATASETS.TEST) == 1 else ()
        self.indicators = Indicators(weighting, groups, offered)
        self.told_at = 0
        logger.info("%s goes by %s", method, self.indicators)

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if 0 < start != self.told_at and start % self.period == 0:
            logger.info(
                "The checkpoint of iteration %d was written before its evaluation, which the "
                "weighting goes by: it takes place now",
                start,
            )
            for hook in self.trainer._hooks:
                if isinstance(hook, EvalHook) and hook._period == self.period:
                    hook._do_eval()
            self._tell(start)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 and done != self.trainer.max_iter:
            self._tell(done)

    def _tell(self, done: int) -> None:
        storage = self.trainer.storage
        latest = {n: value for n, (value, at) in storage.latest().items() if at == storage.iter}
        self.indicators.tell(self.trainer.multitask, comm.all_gather(latest)[0])
        self.told_at = done

    def state_dict(self) -> dict[str, Any]:
        return {"told_at": self.told_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the iteration of the last evaluation that the weighting was told."""
        check_keys(type(self).__name__, state, self.state_dict())
        self.told_at = state["told_at"]
