"""STA and ISTA: batches whose images have tasks, and heads that train on those of their task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import wraps
from itertools import islice
from typing import Any, TypeVar

from detectron2.config import CfgNode, configurable
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.utils import comm
from torch import Tensor, nn

from mtl_plugins.allocation import BatchTasks, TaskAllocation, zero
from mtl_plugins.d2.config import tasks_of
from mtl_plugins.d2.data import TrainLoader
from mtl_plugins.registry import suggest
from mtl_plugins.tasks import TaskGroups

T = TypeVar("T")
Losses = dict[str, Tensor]
RPN_LOSSES = ("loss_rpn_cls", "loss_rpn_loc")


class AllocatedLoader:
    """Batches of a train loader in the order of STA or ISTA (paper B, section 3).

    Each image gets the key ``tasks`` with their names, for :class:`AllocationGates` to see. For its
    later turns ISTA keeps a batch as it was loaded, augmentation and all, and so loads as many
    times fewer; up to ``gap`` batches wait for theirs.

    Args:
        batches: Lists of dicts, those of this rank, without end: a :class:`TrainLoader`, or what
            ``build_detection_train_loader`` returns. Only the former can begin later.
        allocation: The policy.

    Attributes:
        start: Number of the first step. After ``--resume`` within the turns of a batch it is loaded
            again for the others, with an augmentation of its own.

    Examples:
        >>> loader = AllocatedLoader(cfg, TrainLoader(cfg))
    """

    @configurable
    def __init__(
        self, batches: Iterable[Sequence[Mapping[str, Any]]], allocation: TaskAllocation
    ) -> None:
        self.batches = batches
        self.allocation = allocation
        self.start = 0

    @classmethod
    def from_config(
        cls, cfg: CfgNode, batches: Iterable[Sequence[Mapping[str, Any]]]
    ) -> dict[str, Any]:
        options = cfg.MTL.ALLOCATION
        if options.NAME not in (names := ("STA", "ISTA")):
            raise KeyError(
                f"MTL.ALLOCATION.NAME: nothing is called {options.NAME!r}; "
                f"{suggest(options.NAME, names)}"
            )
        if not (tasks := list(tasks_of(cfg))):
            raise ValueError("MTL.ALLOCATION: name the tasks that images are to have in MTL.TASKS")
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        gap = options.GAP if options.NAME == "ISTA" else None
        try:
            allocation = TaskAllocation(tasks, options.TASKS_PER_SAMPLE, gap, seed)
        except ValueError as error:
            raise ValueError(f"MTL.ALLOCATION: {error}") from error
        return {"batches": batches, "allocation": allocation}

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        first, behind = self.allocation.position(self.start)
        if isinstance(self.batches, TrainLoader):
            self.batches.start = first
        schedule = self.allocation.schedule(self.batches, first=first)
        for batch, number, turn in islice(schedule, behind, None):
            place = comm.get_rank() * len(batch)
            yield [
                {**image, "tasks": self.allocation.tasks_of(place + i, number, turn)}
                for i, image in enumerate(batch)
            ]


class AllocationGates:
    """Lets each head train on the images that have its task, and on no others.

    It knows Detectron2's :class:`RPN`, :class:`StandardROIHeads`, also as a cascade, and
    :class:`SemSegFPNHead`. The other images' regions do not reach a head, so that it neither
    computes on them nor normalises over them; the RPN proposes for all images. Where no image has
    the task, its losses are 0 and say nothing to the trunk. Without tasks nothing changes.

    Args:
        model: Methods of its parts are replaced.
        groups: Which losses make which task.

    Raises:
        ValueError: A part needs the images that do not have its task. With the first batch: a loss
            comes from a part that looks at all images, or a head has losses of several tasks.
    """

    def __init__(self, model: nn.Module, groups: TaskGroups) -> None:
        self._groups = groups
        self._images = BatchTasks()
        self._computed: dict[str, str] = {}  # loss: task of the images that it is about
        rpn = getattr(model, "proposal_generator", None)
        if isinstance(rpn, RPN):
            self._gate_rpn(rpn)
        roi_heads = getattr(model, "roi_heads", None)
        if isinstance(roi_heads, StandardROIHeads):
            self._gate_roi_heads(roi_heads)
        sem_seg_head = getattr(model, "sem_seg_head", None)
        if isinstance(sem_seg_head, SemSegFPNHead):
            self._gate_sem_seg_head(sem_seg_head)
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after)

    def _before(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        (images,) = (*args, *kwargs.values())
        self._images.note(image.get("tasks") for image in images)
        self._computed.clear()

    def _after(self, model: nn.Module, args: Any, losses: Losses) -> None:
        if not (model.training and self._images.names()):
            return
        for name in losses:
            task, gated_by = self._groups.task_of(name), self._computed.get(name)
            if task is None or task == gated_by:  # of the former TaskGroups tells
                continue
            if gated_by is None:
                raise ValueError(
                    f"MTL.ALLOCATION: {type(model).__name__} computes {name!r} of the task "
                    f"{task!r} on all images. The heads that can do so on some of them gave "
                    f"{sorted(self._computed)}"
                )
            raise ValueError(
                f"MTL.TASKS: one head computes {name!r} of the task {task!r} together with a loss "
                f"of {gated_by!r}; with MTL.ALLOCATION they have to be one task"
            )

    def _note(self, losses: Losses, task: str) -> Losses:
        self._computed.update(dict.fromkeys(losses, task))
        return losses

    def _gate_rpn(self, rpn: RPN) -> None:
        label, compute, names = rpn.label_and_sample_anchors, rpn.losses, RPN_LOSSES
        task = self._groups.task_of(names[0])
        if task is None:
            return

        def some(images: Sequence[T]) -> Sequence[T]:
            chosen = self._images.chosen(task)
            return images if chosen is None else [images[i] for i in chosen]

        @wraps(label)
        def gated_label(anchors: Any, gt_instances: Sequence[Any]) -> Any:
            return label(anchors, some(gt_instances))

        # Its labels and boxes are those of the chosen images already.
        @wraps(compute)
        def gated(anchors: Any, logits: Any, labels: Any, deltas: Any, boxes: Any) -> Losses:
            chosen = self._images.chosen(task)
            if chosen == []:
                return self._note(dict.fromkeys(names, zero(rpn.rpn_head)), task)
            if chosen is not None:
                logits, deltas = [x[chosen] for x in logits], [x[chosen] for x in deltas]
            return self._note(compute(anchors, logits, labels, deltas, boxes), task)

        rpn.label_and_sample_anchors, rpn.losses = gated_label, gated

    def _gate_roi_heads(self, roi_heads: StandardROIHeads) -> None:
        if roi_heads.train_on_pred_boxes:
            raise ValueError(
                "MTL.ALLOCATION: with MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES the mask head needs "
                "boxes that the box head predicts, which it does not on images of other tasks; "
                "set it to False"
            )
        # A cascade's losses are those of its stages.
        self._gate_regions(roi_heads, "_forward_box", "loss_cls", "loss_cls_stage0")
        self._gate_regions(roi_heads, "_forward_mask", "loss_mask")
        head = getattr(roi_heads, "keypoint_head", None)
        # Otherwise it normalises over all images, those without a region too.
        if getattr(head, "loss_normalizer", None) == "visible":
            self._gate_regions(roi_heads, "_forward_keypoint", "loss_keypoint")

    def _gate_regions(self, roi_heads: StandardROIHeads, method: str, *names: str) -> None:
        compute = getattr(roi_heads, method)
        task = next(filter(None, map(self._groups.task_of, names)), None)
        if task is None:
            return

        @wraps(compute)
        def gated(features: Mapping[str, Tensor], regions: Sequence[Any], *rest: Any) -> Any:
            if not roi_heads.training:
                return compute(features, regions, *rest)
            chosen = self._images.chosen(task)
            if chosen is not None:
                regions = [x if i in chosen else x[:0] for i, x in enumerate(regions)]
            if chosen == []:
                # On no regions rather than not at all: other ranks may have some, and a head with
                # SyncBN wait for this one.
                features = {name: x.detach() for name, x in features.items()}
            return self._note(compute(features, regions, *rest), task)

        setattr(roi_heads, method, gated)

    def _gate_sem_seg_head(self, head: SemSegFPNHead) -> None:
        if comm.get_world_size() > 1 and any(map(_is_sync_norm, head.modules())):
            raise ValueError(
                "MTL.ALLOCATION: a SyncBN in MODEL.SEM_SEG_HEAD waits for ranks where no image has "
                "its task; set MODEL.SEM_SEG_HEAD.NORM to 'GN'"
            )
        compute, name = head.forward, "loss_sem_seg"
        task = self._groups.task_of(name)
        if task is None:
            return

        @wraps(compute)
        def gated(features: Mapping[str, Tensor], targets: Tensor | None = None) -> Any:
            if not head.training:
                return compute(features, targets)
            chosen = self._images.chosen(task)
            if chosen == []:
                return None, self._note({name: zero(head)}, task)
            if chosen is not None:
                features = {name: features[name][chosen] for name in head.in_features}
                targets = targets[chosen]
            results, losses = compute(features, targets)
            return results, self._note(losses, task)

        head.forward = gated


def _is_sync_norm(module: nn.Module) -> bool:
    return isinstance(module, (nn.SyncBatchNorm, NaiveSyncBatchNorm))
