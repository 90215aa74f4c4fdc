"""RoI head of UOAIS-Net: visible mask, amodal mask and occlusion of each object.

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
"""Height and width of the mask and occlusion heads' input, twice those of the box head's."""

HEADS = ("visible_mask_head", "mask_head", "occlusion_head")
"""Names of the heads in the order of occlusion."""


class Outputs(NamedTuple):
    """Outputs of the three heads for ``n`` regions.

    Attributes:
        visible: Logits of the visible mask, ``[n, 1, 28, 28]``.
        amodal: Logits of the amodal mask, ``[n, 1, 28, 28]``.
        occlusion: Logits of not occluded and occluded, ``[n, 2]``.
    """

    visible: Tensor
    amodal: Tensor
    occlusion: Tensor


@MODELS.register_module()
class UOAISRoIHead(StandardRoIHead):
    """Box head, and three heads that share features in the order of occlusion.

    The order is visible mask, amodal mask, occlusion. Each head gets the features of the region and
    of all earlier heads (hierarchical occlusion modelling), and the first feature of the box head,
    upsampled to the same size (multi-level coding).

    The losses are ``loss_cls``, ``loss_bbox``, ``loss_visible_mask``, ``loss_amodal_mask`` and
    ``loss_occlusion``. Ground truth has ``masks`` (amodal), ``visible_masks`` and ``occluded``
    (``[n]``, 1 for objects that count as occluded); predictions have these and
    ``occlusion_scores``, the probability of being occluded.

    Args:
        mask_head: Config of a :class:`HierarchicalMaskHead` for the amodal mask.
        visible_mask_head: Config of a :class:`HierarchicalMaskHead` for the visible mask.
        occlusion_head: Config of a :class:`HierarchicalOcclusionHead`.
        **kwargs: Other arguments of ``StandardRoIHead``. The ``bbox_head`` is a ``ConvFCBBoxHead``
            with ``num_shared_convs=4`` and no fully connected layer but the last.

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
        """Return the heads' outputs for regions ``[n, 5]``, in training and in a test."""
        # The box head's first feature is computed anew, without the other convolutions. In a test,
        # feature and region are of the boxes found; UOAIS takes the feature of the proposals.
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
        """Return the losses of the three heads, on the regions that were sampled as objects."""
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
        """Add ``masks``, ``visible_masks``, ``occluded`` and ``occlusion_scores`` to boxes.

        Masks are ``[n, H, W]``, of the size of the image's file with ``rescale``.
        """
        outputs = self._mask_forward(x, bbox2roi([r.bboxes for r in results_list]))["outputs"]
        counts = [len(results) for results in results_list]
        # Cloned, since predict_by_feat scales the boxes in place.
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
    """Return 3 × 3 convolutions with ReLU between consecutive numbers of channels."""
    return [
        ConvModule(here, there, 3, padding=1, **kwargs)
        for here, there in zip(channels[:-1], channels[1:], strict=True)
    ]


class HierarchicalConvs(BaseModule):
    """Trunk of each of the three heads, which joins all features of a region into one.

    Args:
        position: Number of earlier heads.
        in_channels: Channels of the region's features.
        channels: Channels of the result, of the earlier heads' features and of the coding.
        num_convs: Number of convolutions, without the six that join features.
        stride: Stride of the second of the ``num_convs`` convolutions.
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
        """Return one feature, ``[n, channels, 14 / stride, 14 / stride]``.

        Args:
            features: Features of the region and of the earlier heads, each ``[n, C, 14, 14]``.
            coding: Upsampled feature of the box head, ``[n, channels, 14, 14]``.
        """
        x = self.first(self.guide(torch.cat(list(features), dim=1)))
        return self.rest(self.code(torch.cat([x, coding], dim=1)))


@MODELS.register_module()
class HierarchicalMaskHead(FCNMaskHead):
    """Class-agnostic mask head for :class:`UOAISRoIHead`.

    Args:
        position: Number of earlier heads, which :class:`UOAISRoIHead` sets.
        in_channels: Channels of the region's features.
        conv_out_channels: Channels of the heads' features.
        num_convs: Number of convolutions; see :class:`HierarchicalConvs`.
        loss_mask: Config of the loss; by default the binary cross entropy of ``FCNMaskHead``.
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
        """Let both masks begin at a probability of one half, as in UOAIS."""
        super().init_weights()
        nn.init.normal_(self.conv_logits.weight, std=0.001)

    def forward(self, features: Sequence[Tensor], coding: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[n, 1, 28, 28]``, and the feature ``[n, C, 14, 14]`` for later heads.

        Args:
            features: Features of the region and of the earlier heads, each ``[n, C, 14, 14]``.
            coding: Upsampled feature of the box head, ``[n, C, 14, 14]``.
        """
        x = self.trunk(features, coding)
        return super().forward(x), x


@MODELS.register_module()
class HierarchicalOcclusionHead(BaseModule):
    """Classify objects as occluded or not, for :class:`UOAISRoIHead`.

    Args:
        position: Number of earlier heads, which :class:`UOAISRoIHead` sets.
        in_channels: Channels of the region's features.
        conv_out_channels: Channels of the heads' features.
        num_convs: Number of convolutions; see :class:`HierarchicalConvs`.
        loss_weight: Factor of the loss.
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
        """Return logits of not occluded and occluded, ``[n, 2]``.

        Args:
            features: Features of the region and of the earlier heads, each ``[n, C, 14, 14]``.
            coding: Upsampled feature of the box head, ``[n, C, 14, 14]``.
        """
        return self.classify(self.trunk(features, coding).flatten(1))

    def loss(self, logits: Tensor, occluded: Tensor) -> Tensor:
        """Return the cross entropy with equal weight of both classes, whatever their frequency.

        Args:
            logits: Logits of not occluded and occluded, ``[n, 2]``.
            occluded: Labels ``[n]``, 0 or 1.

        Returns:
            Scalar; 0 without examples, and the mean over the examples if all are of one class.
        """
        if not len(logits):
            return logits.sum()
        counts = torch.stack([(occluded == label).sum() for label in range(2)])
        weight = counts.clamp(min=1).reciprocal().to(logits)
        return self.loss_weight * F.cross_entropy(logits, occluded, weight=weight)
