"""Gates of MMDetection's heads: the methods that compute losses, and their arguments."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import cache
from operator import itemgetter
from typing import Any

from torch import nn

from mtl_plugins import gating
from mtl_plugins.gates import Arguments, GateTable, Losses, scaled, select
from mtl_plugins.tasks import TaskGroups

__all__ = ["GATES", "AllocationGates", "scaled", "select"]

GATES = GateTable()
"""Table that a head of your own joins, see :class:`~mtl_plugins.gates.GateTable`."""


class AllocationGates(gating.AllocationGates):
    """Gates for MMDetection's detectors, and for models with heads in :data:`GATES`.

    The tasks of an image are ``metainfo['tasks']`` of its data sample, where a batch sampler such
    as :class:`~mtl_plugins.mm.samplers.STABatchSampler` puts them.

    Args:
        model: Model; methods of its modules are replaced.
        groups: Losses of each task.
    """

    table = GATES
    key = "train_dataloader.batch_sampler"
    tasks_key = "optim_wrapper.tasks"

    def __init__(self, model: Any, groups: TaskGroups) -> None:
        if "mmdet.models" in sys.modules:
            _register_mmdet()
        super().__init__(model, groups)
        if hasattr(model, "trains"):  # the model looks at each image itself
            model.trains = self._trains
            self.trust(model.optional_losses)

    def examples(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Iterable[Sequence[str] | None]:
        samples = kwargs.get("data_samples", args[1] if len(args) > 1 else None)
        return [getattr(s, "metainfo", {}).get("tasks") for s in _flat(samples)]

    def is_loss(self, name: str) -> bool:
        return "loss" in name

    def _trains(self, sample: Any, loss: str) -> bool:
        """Tell whether an image trains the losses with names that begin with ``loss``.

        Without an image: whether the forward pass is about these losses.
        """
        task = self.groups.task_of(loss)
        if self.turn is not None and task != self.turn:
            return False
        tasks = None if sample is None else sample.metainfo.get("tasks")
        return tasks is None or task in tasks


def _flat(samples: Any) -> Iterable[Any]:
    """Yield the samples of a batch, also of one with several branches."""
    if isinstance(samples, Mapping):
        samples = list(samples.values())
    for sample in samples or ():
        if isinstance(sample, (list, tuple)):
            yield from _flat(sample)
        else:
            yield sample


@cache
def _register_mmdet() -> None:
    """Register MMDetection's heads, once they are imported."""
    from mmdet.models import dense_heads as dense
    from mmdet.models import roi_heads as roi
    from mmdet.models import seg_heads as seg
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.dense_heads.base_mask_head import BaseMaskHead
    from mmdet.models.seg_heads.base_semantic_head import BaseSemanticHead

    # The RPN proposes for all images, and so goes over all: only its losses are about some of them.
    GATES.register(
        dense.RPNHead,
        "loss_by_feat",
        losses=["loss_rpn_cls", "loss_rpn_bbox"],
        maps=["cls_scores", "bbox_preds"],
        lists=["batch_gt_instances", "batch_img_metas", "batch_gt_instances_ignore"],
        keeps_sync=True,
    )
    GATES.register(
        roi.StandardRoIHead,
        "bbox_loss",
        losses=["loss_cls", "loss_bbox"],
        maps=["x"],
        lists=["sampling_results"],
        heads=["bbox_head"],
        unpack=itemgetter("loss_bbox"),
        pack=_bbox_results,
    )
    masks = {
        roi.StandardRoIHead: {"loss_mask": "mask_head"},
        roi.MaskScoringRoIHead: {"loss_mask": "mask_head", "loss_mask_iou": "mask_iou_head"},
        roi.PointRendRoIHead: {"loss_mask": "mask_head", "loss_point": "point_head"},
    }
    for cls, heads in masks.items():
        GATES.register(
            cls,
            "mask_loss",
            losses=tuple(heads),
            maps=["x"],
            lists=["sampling_results", "batch_gt_instances"],
            whole=["bbox_feats"],
            heads=tuple(heads.values()),
            unpack=itemgetter("loss_mask"),
            pack=_mask_results,
            refuse=_shares_features,
        )
    everything = {"maps": ["x"], "lists": ["batch_data_samples"]}
    # Heads may count over the ranks, as FCOS does; the names are from RetinaNet, AutoAssign,
    # FreeAnchor, CornerNet, CenterNet and those that build on them.
    names = ("loss_cls", "loss_pos", "positive_bag_loss", "det_loss", "loss_center_heatmap")
    GATES.register(BaseDenseHead, "loss", losses=names, nobody=_no_objects, **everything)
    GATES.register(
        BaseMaskHead,
        "loss",
        losses=["loss_mask", "loss_mask_project"],  # the latter in BoxInst
        whole=["positive_infos"],
        prepare=_positives,
        nobody=_no_objects,
        **everything,
    )
    for cls in (BaseSemanticHead, seg.PanopticFPNHead):
        GATES.register(cls, "loss", losses=["loss_seg"], **everything)


def _bbox_results(losses: Losses) -> dict[str, Any]:
    return {"loss_bbox": losses, "bbox_feats": None}


def _mask_results(losses: Losses) -> dict[str, Any]:
    return {"loss_mask": losses}


def _shares_features(head: nn.Module) -> str | None:
    if getattr(head, "share_roi_extractor", False):
        return (
            f"in {type(head).__name__} the mask head takes the features of the box head's images; "
            "give it a roi_head.mask_roi_extractor of its own"
        )
    return None


def _no_objects(given: Arguments) -> Arguments:
    """Return the first image without its objects, and features that give the trunk no gradient."""
    sample = copy(given["batch_data_samples"][0])
    sample.gt_instances = sample.gt_instances[:0]
    x = [level[:1].detach() for level in given["x"]]
    return {"x": type(given["x"])(x), "batch_data_samples": [sample]}


def _positives(model: nn.Module, given: Arguments) -> Arguments:
    """Run the box head on the images of the mask's task, and return its positives there.

    The run before was on the images of the box head's own task.

    Raises:
        ValueError: No way to get the positives is known for the model's class.
    """
    from mmdet.models.detectors.single_stage_instance_seg import (
        SingleStageInstanceSegmentor as Segmentor,
    )

    if given.get("positive_infos") is None:
        return {}
    if not isinstance(model, Segmentor) or type(model).loss is not Segmentor.loss:
        raise ValueError(
            f"train_dataloader.batch_sampler: {type(model).__name__} gives its mask head positives "
            "of a box head that saw the images of another task; train it without, or override "
            "less than SingleStageInstanceSegmentor.loss"
        )
    head = model.bbox_head
    type(head).loss(head, given["x"], given["batch_data_samples"])  # past the gate
    return {"positive_infos": head.get_positive_infos()}
