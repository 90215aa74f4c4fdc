"""Tell the weighting the metrics of the validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from mtl_plugins.indicators import Indicators
from mtl_plugins.registry import under

TOLD_AT = "mtl_indicators_told_at"


@HOOKS.register_module()
class IndicatorHook(Hook):
    """Hook that tells a weighting such as ``DTP`` the metrics of each validation.

    Every run with ``MTLOptimWrapper`` has the hook, which does nothing for other weightings.
    MMEngine writes a checkpoint before it validates: a run that is resumed from such a one
    validates first, as the uninterrupted run did.
    """

    priority = "NORMAL"

    def __init__(self) -> None:
        self._indicators: Indicators | None = None

    def before_train(self, runner: Runner) -> None:
        multitask = getattr(runner.optim_wrapper, "multitask", None)
        weighting = None if multitask is None else multitask.weighting
        if weighting is None or not weighting.needs_indicators:
            return
        method = type(weighting).__name__
        if runner.val_loop is None:
            raise ValueError(
                f"optim_wrapper.weighting: {method} goes by the metrics of the validation, and the "
                "config has none; set val_dataloader, val_evaluator and val_cfg"
            )
        self._refuse_late(runner, method)
        metrics = runner.val_loop.evaluator.metrics
        offered = [name for metric in metrics for name in _names(metric)]
        openings = tuple(opening for metric in metrics for opening in _openings(metric))
        with under("optim_wrapper", ("weighting", "tasks")):
            self._indicators = Indicators(
                weighting,
                runner.optim_wrapper.groups,
                offered,
                lambda name: name.startswith(openings),
            )
        runner.logger.info(f"{method} goes by {self._indicators}")
        told_at = runner.message_hub.get_info(TOLD_AT, 0)
        if 0 < runner.iter != told_at and _validates_here(runner):
            runner.logger.info(
                f"The checkpoint of iteration {runner.iter} was written before its validation, "
                f"which {method} goes by: it takes place now."
            )
            runner.val_loop.run()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if self._indicators is None:  # a validation alone
            return
        with under("optim_wrapper", ("weighting",)):
            self._indicators.tell(runner.optim_wrapper.multitask, metrics or {})
        runner.message_hub.update_info(TOLD_AT, runner.iter)

    def _refuse_late(self, runner: Runner, method: str) -> None:
        loop = runner.train_loop
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        if not by_epoch and not isinstance(loop, IterBasedTrainLoop):
            return
        if len(loop.dynamic_intervals) > 1:
            return
        end = loop.max_epochs if by_epoch else loop.max_iters
        first = -(-max(loop.val_begin, 1) // loop.val_interval) * loop.val_interval
        if first >= end:
            raise ValueError(
                f"optim_wrapper.weighting: {method} goes by the metrics of the validation, and the "
                f"first would be at the end of the run ({'epoch' if by_epoch else 'iteration'} "
                f"{end}): all weights would be equal. Set train_cfg.val_interval below {end}, "
                f"found {loop.val_interval}, and train_cfg.val_begin, found {loop.val_begin}"
            )


def _validates_here(runner: Runner) -> bool:
    """Tell whether the loop validates at the iteration that a resumed run begins with."""
    loop = runner.train_loop
    if isinstance(loop, EpochBasedTrainLoop):
        at = loop.epoch if loop.iter == loop.epoch * len(loop.dataloader) else 0
    elif isinstance(loop, IterBasedTrainLoop):
        at = loop.iter
    else:
        return False
    loop._decide_current_val_interval()
    return at >= max(loop.val_begin, 1) and at % loop.val_interval == 0


def _names(metric: BaseMetric) -> Iterator[str]:
    """Yield the metrics that an evaluator is known to give."""
    prefix = f"{metric.prefix}/" if metric.prefix else ""
    kinds: Sequence[str] = getattr(metric, "metrics", ())
    for kind in (*kinds, *getattr(metric, "names", ())):
        yield f"{prefix}{kind}_mAP" if _is_coco(metric) else f"{prefix}{kind}"


def _openings(metric: BaseMetric) -> list[str]:
    """Return how the names of an evaluator's metrics begin."""
    prefix = f"{metric.prefix}/" if metric.prefix else ""
    if _is_coco(metric):
        return [f"{prefix}{kind}" for kind in metric.metrics]
    return [prefix]


def _is_coco(metric: BaseMetric) -> bool:
    # LVIS, a subclass of MMDetection's metric, has names of its own.
    return type(metric).default_prefix == "coco" and hasattr(metric, "metrics")
