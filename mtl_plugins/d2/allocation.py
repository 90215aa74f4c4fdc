"""STA and ISTA: batches whose images have tasks, and heads that train on images of one task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.utils import comm

from mtl_plugins import gating
from mtl_plugins.allocation import TaskAllocation
from mtl_plugins.d2.config import tasks_of
from mtl_plugins.d2.data import TrainLoader
from mtl_plugins.gates import Arguments, GateTable, Losses
from mtl_plugins.registry import suggest

logger = logging.getLogger("detectron2.mtl_plugins")


class AllocatedLoader:
    """Batches of a train loader in the order of STA or ISTA (paper B, section 3).

    Each image gets the key ``tasks`` with the names of its tasks, for :class:`AllocationGates` to
    see. ISTA keeps a batch as it was loaded, augmentation and all, for the later turns of the
    batch, and so loads as many times fewer; up to ``gap`` batches wait for a later turn.

    Args:
        batches: Batches of this rank, lists of dicts, without end: a :class:`TrainLoader`, or what
            ``build_detection_train_loader`` returns. Only a :class:`TrainLoader` can begin later.
        allocation: The policy.

    Attributes:
        start: Number of the first step. After ``--resume`` within the turns of a batch, the batch
            is loaded again for its other turns, with a new augmentation.

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
            allocation = TaskAllocation(
                tasks, options.TASKS_PER_SAMPLE, gap, seed, options.ONLY or None
            )
        except ValueError as error:
            raise ValueError(_with_key(str(error))) from error
        if allocation.remark:
            logger.warning(_with_key(allocation.remark))
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


def _with_key(text: str) -> str:
    """Name the config key of an option that a message of :class:`TaskAllocation` begins with."""
    option, _, rest = text.partition(":")
    key = "MTL.TASKS" if option == "tasks" else f"MTL.ALLOCATION.{option.upper()}"
    return f"{key}:{rest}"


GATES = GateTable()
"""Table that a head of your own joins, see :class:`~mtl_plugins.gates.GateTable`."""


class AllocationGates(gating.AllocationGates):
    """Gates for Detectron2's models, and for models with heads in :data:`GATES`.

    The tasks of an image are ``"tasks"`` in its dict, where :class:`AllocatedLoader` puts them. The
    RPN proposes for all images.

    Args:
        model: Model; methods of its modules are replaced.
        groups: Losses of each task.
    """

    table = GATES
    key = "MTL.ALLOCATION"
    tasks_key = "MTL.TASKS"

    def examples(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Iterable[Sequence[str] | None]:
        batch = next(iter((*args, *kwargs.values())), None)
        images = batch if isinstance(batch, (list, tuple)) else ()
        return [image.get("tasks") for image in images if isinstance(image, Mapping)]


def _no_regions(kind: str) -> Callable[[Arguments], Arguments]:
    """Make a branch run on no regions, rather than not at all where no image has its task.

    Other ranks may have such images, and a head with SyncBN waits for all ranks.
    """

    def nobody(given: Arguments) -> Arguments:
        features = {name: x.detach() for name, x in given["features"].items()}
        return {"features": features, kind: [x[:0] for x in given[kind]]}

    return nobody


def _no_images(given: Arguments) -> Arguments:
    return {"gt_instances": []}


def _no_losses(result: Any) -> Losses:
    return {}


def _sem_seg_result(losses: Losses) -> tuple[None, Losses]:
    return None, losses


def _takes_predicted_boxes(roi_heads: StandardROIHeads) -> str | None:
    if roi_heads.train_on_pred_boxes:
        return (
            "with MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES the other heads need boxes that the box "
            "head predicts, which it does not on images of other tasks; set it to False"
        )
    return None


RPN_LOSSES = ("loss_rpn_cls", "loss_rpn_loc")
# Only the chosen images need labels, so labelling is gated like the losses.
GATES.register(
    RPN,
    "label_and_sample_anchors",
    losses=RPN_LOSSES,
    lists=["gt_instances"],
    whole=["anchors"],
    needs=["losses"],
    unpack=_no_losses,
    nobody=_no_images,
    keeps_sync=True,
)
GATES.register(
    RPN,
    "losses",
    losses=RPN_LOSSES,
    maps=["pred_objectness_logits", "pred_anchor_deltas"],
    whole=["anchors", "gt_labels", "gt_boxes"],
    heads=["rpn_head"],
    needs=["label_and_sample_anchors"],
    keeps_sync=True,
)
BRANCHES = (
    (StandardROIHeads, "_forward_box", "proposals", ("loss_cls", "loss_box_reg"), ()),
    (StandardROIHeads, "_forward_mask", "instances", ("loss_mask",), ()),
    (StandardROIHeads, "_forward_keypoint", "instances", ("loss_keypoint",), ()),
    (CascadeROIHeads, "_forward_box", "proposals", ("loss_cls_stage0",), ("targets",)),
)
for cls, method, regions, losses, others in BRANCHES:
    GATES.register(
        cls,
        method,
        losses=losses,
        maps=["features"],
        lists=(regions, *others),
        nobody=_no_regions(regions),
        refuse=_takes_predicted_boxes if regions == "instances" else lambda roi_heads: None,
        keeps_sync=True,
    )
GATES.register(
    SemSegFPNHead,
    "forward",
    losses=["loss_sem_seg"],
    maps=["features", "targets"],
    unpack=itemgetter(1),
    pack=_sem_seg_result,
)
