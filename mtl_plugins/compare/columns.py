"""Columns of the table: metrics of the frameworks, their tasks, and which way is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from mtl_plugins.metrics import LOWER_IS_BETTER
from mtl_plugins.registry import suggest
from mtl_plugins.tasks import TaskGroups

# Patterns of metrics, and losses by which the task is found: COCO's boxes and masks in MMDetection
# and in Detectron2, semantic maps, and UOAIS.
BY_LOSS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("*bbox_mAP", ("loss_bbox", "loss_iou", "loss_cls")),
    ("*segm_mAP", ("loss_mask", "loss_dice")),
    ("*bbox/AP", ("loss_box_reg", "loss_box_reg_stage0")),
    ("*segm/AP", ("loss_mask",)),
    ("*keypoints/AP", ("loss_keypoint",)),
    ("*mIoU", ("loss_sem_seg", "loss_seg", "loss_semantic", "decode.loss_ce")),
    ("*visible_mAP", ("loss_visible_mask",)),
    ("*amodal_mAP", ("loss_mask", "loss_amodal_mask")),
    ("*occlusion_F1", ("loss_occlusion", "loss_occ")),
)
# Names after "<task>/": the metrics of paper A, and the depth error of papers B and D.
DENSE = (
    *("mIoU", "aAcc", "abs_err", "abs_rel", "rmse"),
    *("mean_angle", "median_angle", "within_11.25", "within_22.5", "within_30"),
)
# Known metrics in percent: Detectron2's, and those of semantic maps and normals.
PERCENT = ("*/AP", "*mIoU", "*aAcc", "*within_*")


class Column(NamedTuple):
    """One metric of the table.

    Attributes:
        name: Name in the logs.
        task: Task that the metric is of.
        lower: Whether less is better.
    """

    name: str
    task: str
    lower: bool

    @property
    def arrow(self) -> str:
        return "↓" if self.lower else "↑"


def parse(text: str) -> tuple[str, str | None, bool | None]:
    """Parse ``NAME``, or ``NAME=TASK:high`` and ``NAME=TASK:low`` of a metric of one's own.

    Raises:
        SystemExit: The text is none of these.
    """
    name, equals, rest = text.partition("=")
    if not equals:
        return name, None, None
    task, _, better = rest.rpartition(":")
    if not name or not task or better not in ("high", "low"):
        raise SystemExit(
            f"--metrics: {text!r} is neither NAME nor NAME=TASK:high or NAME=TASK:low, which says "
            "the task of the metric and whether a high or a low value is better"
        )
    return name, task, better == "low"


def choose(found: Iterable[str], tasks: Mapping[str, Any], wanted: Sequence[str]) -> list[Column]:
    """Choose the columns among the metrics of a run.

    Args:
        found: Names of the metrics of the run.
        tasks: Losses of each task, as in the config.
        wanted: Metrics asked for, see :func:`parse`; without any, all that are known.

    Raises:
        SystemExit: A metric that is asked for is not there or not known, or none is known.
    """
    found = sorted(found)
    groups = TaskGroups(dict(tasks) or None)
    columns = []
    for name, task, lower in map(parse, wanted):
        if name not in found:
            raise SystemExit(f"--metrics: no run has {name!r}; {suggest(name, found)}")
        known = known_column(name, groups)
        if task is not None and lower is not None:
            known = Column(name, task, lower)
        if known is None:
            raise SystemExit(
                f"--metrics: of {name!r} nobody has said which way is better: {name}=TASK:high or "
                f"{name}=TASK:low"
            )
        columns.append(known)
    if not wanted:
        columns = [column for name in found if (column := known_column(name, groups))]
        order = list(groups.names)
        columns.sort(key=lambda c: order.index(c.task) if c.task in order else len(order))
    if not columns:
        raise SystemExit(
            f"--metrics: none of the metrics is known: {', '.join(found) or 'there is none'}. Say "
            "--metrics NAME=TASK:high or NAME=TASK:low, or compare = dict(metrics=[...]) in the "
            "config (MTL.COMPARE.METRICS)"
        )
    return columns


def in_percent(name: str) -> bool:
    """Tell whether a known metric is in percent; others are fractions, or errors in any unit."""
    return any(fnmatchcase(name, pattern) for pattern in PERCENT)


def known_column(name: str, groups: TaskGroups) -> Column | None:
    """Return the column of a metric of the frameworks; None if the metric is not known."""
    prefix, _, base = name.rpartition("/")
    lower = base in LOWER_IS_BETTER
    if base in DENSE and prefix in groups.names:
        return Column(name, prefix, lower)
    for pattern, losses in BY_LOSS:
        if fnmatchcase(name, pattern):
            named = groups.names
            task = next((t for t in map(groups.task_of, losses) if t), None) if named else None
            return Column(name, task or prefix or base, lower)
    return Column(name, prefix, lower) if base in DENSE and prefix else None
