"""Mask R-CNN with batch norms of each task's own: detection and masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmdet.models.detectors import MaskRCNN
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor

from mtl_plugins.mm.models.task_norms import TaskNorms

TASKS = ("detection", "mask")


@MODELS.register_module()
class TaskNormMaskRCNN(MaskRCNN):
    """Mask R-CNN whose trunk runs once for ``detection`` and once for ``mask``.

    Regions come from detection's pass: the mask head is trained on the regions that the box head
    sampled, with features of its own pass, and predicts on the box head's boxes.

    Args:
        task_norm: Settings of the norms, see :class:`~mtl_plugins.mm.models.task_norms.TaskNorms`;
            ``dict()`` for those of backbone and neck.
        **kwargs: Arguments of MMDetection's ``MaskRCNN``.

    Raises:
        ValueError: The RoI head is not MMDetection's ``StandardRoIHead``, or its mask head takes
            the features of the box head.
    """

    optional_losses = ()

    def __init__(self, *, task_norm: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if type(self.roi_head) is not StandardRoIHead or self.roi_head.share_roi_extractor:
            raise ValueError(
                f"model.roi_head: TaskNormMaskRCNN needs a StandardRoIHead with a "
                f"mask_roi_extractor of its own, got {type(self.roi_head).__name__}"
            )
        self.trains: Callable[[Any, str], bool] = lambda sample, loss: True
        self.task_norms = TaskNorms(self, TASKS, task_norm or {}, self.extract_feat)
        self._sampled: list[SamplingResult] = []

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Any]:
        """Return the losses of both tasks, or of the one that the forward pass is about.

        Raises:
            ValueError: Masks come before detection, which samples their regions.
        """
        losses: dict[str, Any] = {}
        truth, ignored, _ = unpack_gt_instances(batch_data_samples)
        if self.trains(None, "loss_rpn_cls"):
            with self.task_norms.of("detection"):
                x = self.extract_feat(batch_inputs)
                found, proposals = self._propose(x, batch_data_samples)
                self._sampled = self._sample(x, proposals, truth, ignored)
                losses |= found
                losses |= self.roi_head.bbox_loss(x, self._sampled)["loss_bbox"]
        if self.trains(None, "loss_mask"):
            sampled, self._sampled = self._sampled, []
            if len(sampled) != len(batch_data_samples):
                raise ValueError(
                    "optim_wrapper.tasks: the box head samples the regions of the masks; name the "
                    "task of detection before that of the masks"
                )
            with self.task_norms.of("mask"):
                x = self.extract_feat(batch_inputs)
                losses |= self.roi_head.mask_loss(x, sampled, None, truth)["loss_mask"]
        return losses

    def _propose(self, x: Any, samples: SampleList) -> tuple[dict[str, Any], list[Any]]:
        """Return the losses and the proposals of the RPN, as ``TwoStageDetector.loss`` does."""
        settings = self.train_cfg.get("rpn_proposal", self.test_cfg.rpn)
        samples = copy.deepcopy(samples)
        for sample in samples:
            sample.gt_instances.labels = torch.zeros_like(sample.gt_instances.labels)
        losses, proposals = self.rpn_head.loss_and_predict(x, samples, proposal_cfg=settings)
        return {k if "rpn" in k else f"rpn_{k}": v for k, v in losses.items()}, proposals

    def _sample(
        self, x: Any, proposals: list[Any], truth: list[Any], ignored: list[Any]
    ) -> list[SamplingResult]:
        """Assign and sample the regions of each image, as ``StandardRoIHead.loss`` does."""
        head, sampled = self.roi_head, []
        for i, regions in enumerate(proposals):
            regions.priors = regions.pop("bboxes")
            assigned = head.bbox_assigner.assign(regions, truth[i], ignored[i])
            features = [level[i][None] for level in x]
            sampled.append(head.bbox_sampler.sample(assigned, regions, truth[i], feats=features))
        return sampled

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """Predict boxes by detection's pass, and their masks by the masks' own."""
        metas = [sample.metainfo for sample in batch_data_samples]
        with self.task_norms.of("detection"):
            x = self.extract_feat(batch_inputs)
            proposals = self.rpn_head.predict(x, batch_data_samples, rescale=False)
            results = self.roi_head.predict_bbox(
                x, metas, proposals, rcnn_test_cfg=self.roi_head.test_cfg, rescale=False
            )
        with self.task_norms.of("mask"):
            x = self.extract_feat(batch_inputs)
            results = self.roi_head.predict_mask(x, metas, results, rescale=rescale)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> tuple[Any, ...]:
        """Return the raw outputs, with the norms of detection for all."""
        with self.task_norms.of("detection"):
            return super()._forward(batch_inputs, batch_data_samples)
