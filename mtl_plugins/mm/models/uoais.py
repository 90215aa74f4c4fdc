"""The RoI head of UOAIS-Net: visible mask, amodal mask and occlusion of each object.

`Unseen Object Amodal Instance Segmentation via Hierarchical Occlusion Modeling
<https://arxiv.org/abs/2109.11103>`_, the system of paper C (section 3). ``n`` is the number of
regions, ``C`` the channels of their features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmcv.cnn import ConvModule
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi
from mmdet.utils import InstanceList
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

ROI_SIZE = 14
"""Height and width of what the mask and occlusion heads look at; the box head's is half of it."""

HEADS = ("visible_mask_head", "mask_head", "occlusion_head")
"""In the order of occlusion."""


class Outputs(NamedTuple):
    """What the three heads say of ``n`` regions.

    Attributes:
        visible: Logits ``[n, 1, 28, 28]``.
        amodal: Likewise.
        occlusion: Logits of not occluded and occluded, ``[n, 2]``.
    """

    visible: Tensor
    amodal: Tensor
    occlusion: Tensor


@MODELS.register_module()
class UOAISRoIHead(StandardRoIHead):
    """A box head, and three heads that look at each other's features in the order of occlusion.

    Visible mask, amodal mask, occlusion: each head gets the features of the region and those of all
    heads before it (hierarchical occlusion modelling), and the first feature of the box head,
    upsampled to their size (multi-level coding).

    The losses are ``loss_cls``, ``loss_bbox``, ``loss_visible_mask``, ``loss_amodal_mask`` and
    ``loss_occlusion``. Ground truth has ``masks`` (amodal), ``visible_masks`` and ``occluded``
    (``[n]``, 1 for objects that count as occluded); predictions have these and
    ``occlusion_scores``, the probability of being occluded.

    Args:
        mask_head: A :class:`HierarchicalMaskHead`, for the amodal mask.
        visible_mask_head: Likewise.
        occlusion_head: A :class:`HierarchicalOcclusionHead`.
        **kwargs: Other arguments of ``StandardRoIHead``. The ``bbox_head`` is a ``ConvFCBBoxHead``
            with ``num_shared_convs=4`` and no layer that is fully connected but the last.

    Raises:
        ValueError: The heads do not fit together.
    """

    def __init__(
        self,
        *,
        mask_head: Mapping[str, Any],
        visible_mask_head: Mapping[str, Any],
        occlusion_head: Mapping[str, Any],
        **kwargs: Any,
    ) -> None:
        super().__init__(mask_head={**mask_head, "position": 1}, **kwargs)
        self.visible_mask_head = MODELS.build({**visible_mask_head, "position": 0})
        self.occlusion_head = MODELS.build({**occlusion_head, "position": 2})
        self._check()
        channels = self.mask_head.conv_out_channels
        self.coding = nn.Sequential(
            nn.ConvTranspose2d(self.bbox_head.conv_out_channels, channels, 2, stride=2),
            *convolutions([channels] * 3),
        )

    def _check(self) -> None:
        heads = {name: getattr(self, name) for name in HEADS}
        widths = {name: head.conv_out_channels for name, head in heads.items()}
        sizes = {
            "bbox": tuple(self.bbox_roi_extractor.roi_layers[0].output_size),
            "mask": tuple(self.mask_roi_extractor.roi_layers[0].output_size),
        }
        problem = None
        if not getattr(self.bbox_head, "num_shared_convs", 0):
            problem = "bbox_head.num_shared_convs: expected at least 1, whose feature is passed on"
        elif self.bbox_head.num_classes != 1:
            problem = f"bbox_head.num_classes: expected 1, got {self.bbox_head.num_classes}"
        elif len(set(widths.values())) > 1:
            problem = f"conv_out_channels of the heads have to be equal, got {widths}"
        for name, size in (("bbox", ROI_SIZE // 2), ("mask", ROI_SIZE)):
            if sizes[name] != (size, size):
                problem = problem or (
                    f"{name}_roi_extractor.roi_layer.output_size: expected {size}, got "
                    f"{sizes[name]}"
                )
        if problem is not None:
            raise ValueError(f"model.roi_head.{problem}")

    def _mask_forward(self, x: Sequence[Tensor], rois: Tensor) -> dict[str, Any]:
        """What the heads say of regions ``[n, 5]``, also for training on sampled ones."""
        # The box head's first feature is taken anew, without its other convolutions: in a test, of
        # the boxes that it found, as the region is, where UOAIS takes that of their proposals.
        boxes = self.bbox_roi_extractor(x[: self.bbox_roi_extractor.num_inputs], rois)
        coding = self.coding(self.bbox_head.shared_convs[0](boxes))
        region = self.mask_roi_extractor(x[: self.mask_roi_extractor.num_inputs], rois)
        visible, seen = self.visible_mask_head([region], coding)
        amodal, whole = self.mask_head([region, seen], coding)
        occlusion = self.occlusion_head([region, seen, whole], coding)
        return {"mask_preds": amodal, "outputs": Outputs(visible, amodal, occlusion)}

    def mask_loss(
        self,
        x: Sequence[Tensor],
        sampling_results: list[SamplingResult],
        bbox_feats: Tensor,
        batch_gt_instances: InstanceList,
    ) -> dict[str, Any]:
        """The losses of the three heads, on the regions that were sampled as objects."""
        rois = bbox2roi([sampled.pos_priors for sampled in sampling_results])
        results = self._mask_forward(x, rois)
        outputs = results["outputs"]
        losses = {}
        for name, head, predicted, masks in (
            ("loss_visible_mask", self.visible_mask_head, outputs.visible, "visible_masks"),
            ("loss_amodal_mask", self.mask_head, outputs.amodal, "masks"),
        ):
            truth = [InstanceData(masks=objects[masks]) for objects in batch_gt_instances]
            found = head.loss_and_target(predicted, sampling_results, truth, self.train_cfg)
            losses[name] = found["loss_mask"]["loss_mask"]
        occluded = [
            objects.occluded[sampled.pos_assigned_gt_inds]
            for objects, sampled in zip(batch_gt_instances, sampling_results, strict=True)
        ]
        losses["loss_occlusion"] = self.occlusion_head.loss(outputs.occlusion, torch.cat(occluded))
        return results | {"loss_mask": losses}

    def predict_mask(
        self,
        x: Sequence[Tensor],
        batch_img_metas: list[dict[str, Any]],
        results_list: InstanceList,
        rescale: bool = False,
    ) -> InstanceList:
        """Adds ``masks``, ``visible_masks``, ``occluded`` and ``occlusion_scores`` to boxes.

        Masks are ``[n, H, W]``, of the size of the image's file with ``rescale``.
        """
        outputs = self._mask_forward(x, bbox2roi([r.bboxes for r in results_list]))["outputs"]
        counts = [len(results) for results in results_list]
        # predict_by_feat scales the boxes in place, and shall do so once.
        seen = [InstanceData(bboxes=r.bboxes.clone(), labels=r.labels) for r in results_list]
        arguments = (batch_img_metas, self.test_cfg, rescale)
        seen = self.visible_mask_head.predict_by_feat(
            outputs.visible.split(counts), seen, *arguments
        )
        results_list = self.mask_head.predict_by_feat(
            outputs.amodal.split(counts), results_list, *arguments
        )
        scores = outputs.occlusion.softmax(dim=1)[:, 1].split(counts)
        for results, visible, score in zip(results_list, seen, scores, strict=True):
            results.visible_masks = visible.masks
            results.occlusion_scores = score
            results.occluded = (score > 0.5).long()
        return results_list


def convolutions(channels: Sequence[int], **kwargs: Any) -> list[ConvModule]:
    """3 × 3 convolutions with ReLU between numbers of channels."""
    return [
        ConvModule(here, there, 3, padding=1, **kwargs)
        for here, there in zip(channels[:-1], channels[1:], strict=True)
    ]


class HierarchicalConvs(BaseModule):
    """What the three heads have in common: from all features of a region to one.

    Args:
        position: How many heads come before.
        in_channels: Of the region's features.
        channels: Of what it and the heads before return, and of the coding.
        num_convs: Between the features and the result; those that join features come on top.
        stride: Of the second of them.
    """

    def __init__(
        self, position: int, in_channels: int, channels: int, num_convs: int = 4, stride: int = 1
    ) -> None:
        super().__init__()
        joined = in_channels + position * channels
        self.guide = nn.Sequential(*convolutions([joined, joined, joined, channels]))
        (self.first,) = convolutions([channels, channels])
        self.code = nn.Sequential(*convolutions([2 * channels] * 3 + [channels]))
        self.rest = nn.Sequential(
            *convolutions([channels] * 2, stride=stride),
            *convolutions([channels] * (num_convs - 1)),
        )

    def forward(self, features: Sequence[Tensor], coding: Tensor) -> Tensor:
        """One feature, ``[n, channels, 14 / stride, 14 / stride]``.

        Args:
            features: Of the region and of the heads before, each ``[n, C, 14, 14]``.
            coding: Of the box head, ``[n, channels, 14, 14]``.
        """
        x = self.first(self.guide(torch.cat(list(features), dim=1)))
        return self.rest(self.code(torch.cat([x, coding], dim=1)))


@MODELS.register_module()
class HierarchicalMaskHead(FCNMaskHead):
    """A class-agnostic mask head for :class:`UOAISRoIHead`.

    Args:
        position: How many heads come before; :class:`UOAISRoIHead` says so.
        in_channels: Of the region's features.
        conv_out_channels: Of what the heads return.
        num_convs: See :class:`HierarchicalConvs`.
        loss_mask: By default the binary cross entropy of ``FCNMaskHead``.
    """

    def __init__(
        self,
        position: int,
        in_channels: int = 256,
        conv_out_channels: int = 256,
        num_convs: int = 4,
        loss_mask: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            num_convs=0,
            in_channels=conv_out_channels,
            conv_out_channels=conv_out_channels,
            num_classes=1,
            class_agnostic=True,
            **({} if loss_mask is None else {"loss_mask": loss_mask}),
        )
        self.trunk = HierarchicalConvs(position, in_channels, conv_out_channels, num_convs)

    def init_weights(self) -> None:
        """As ``FCNMaskHead``, but both masks begin at a probability of one half, as in UOAIS."""
        super().init_weights()
        nn.init.normal_(self.conv_logits.weight, std=0.001)

    def forward(self, features: Sequence[Tensor], coding: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[n, 1, 28, 28]``, and the feature ``[n, C, 14, 14]`` for the heads that follow.

        Args:
            features: See :class:`HierarchicalConvs`.
            coding: Likewise.
        """
        x = self.trunk(features, coding)
        return super().forward(x), x


@MODELS.register_module()
class HierarchicalOcclusionHead(BaseModule):
    """Tells objects that something hides, for :class:`UOAISRoIHead`.

    Args:
        position: How many heads come before; :class:`UOAISRoIHead` says so.
        in_channels: Of the region's features.
        conv_out_channels: Of what the heads before return.
        num_convs: See :class:`HierarchicalConvs`.
        loss_weight: Of the loss.
    """

    def __init__(
        self,
        position: int = 2,
        in_channels: int = 256,
        conv_out_channels: int = 256,
        num_convs: int = 4,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(init_cfg={"type": "Normal", "layer": "Linear", "std": 0.01})
        self.conv_out_channels = conv_out_channels
        self.loss_weight = loss_weight
        self.trunk = HierarchicalConvs(
            position, in_channels, conv_out_channels, num_convs, stride=2
        )
        self.classify = nn.Linear(conv_out_channels * (ROI_SIZE // 2) ** 2, 2)

    def forward(self, features: Sequence[Tensor], coding: Tensor) -> Tensor:
        """Logits of not occluded and occluded, ``[n, 2]``.

        Args:
            features: See :class:`HierarchicalConvs`.
            coding: Likewise.
        """
        return self.classify(self.trunk(features, coding).flatten(1))

    def loss(self, logits: Tensor, occluded: Tensor) -> Tensor:
        """Cross entropy in which both classes count alike, however few examples one has.

        Args:
            logits: ``[n, 2]``.
            occluded: ``[n]``, 0 or 1.

        Returns:
            A scalar; 0 without examples. With those of one class it is their mean.
        """
        if not len(logits):
            return logits.sum()
        counts = torch.stack([(occluded == label).sum() for label in range(2)])
        weight = counts.clamp(min=1).reciprocal().to(logits)
        return self.loss_weight * F.cross_entropy(logits, occluded, weight=weight)
