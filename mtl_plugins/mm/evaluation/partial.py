"""Metrics of several tasks in one run, each on the images that are labelled for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.evaluation import CocoMetric, SemSegMetric
from mmdet.registry import METRICS


@METRICS.register_module()
class PartialCocoMetric(CocoMetric):
    """``CocoMetric`` of MMDetection on the images that have boxes.

    Over several processes the sampler must repeat no image: ``round_up=False``.
    """

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[dict]) -> None:
        """Collect the predictions for a batch."""
        super().process(data_batch, [s for s in data_samples if "gt_instances" in s])


@METRICS.register_module()
class PartialSemSegMetric(SemSegMetric):
    """``SemSegMetric`` of MMDetection on the images that have a semantic map.

    The classes are the data set's ``seg_classes``, since ``classes`` belong to the boxes. Over
    several processes the sampler must repeat no image: ``round_up=False``.
    """

    @property
    def dataset_meta(self) -> Mapping[str, Any] | None:
        """Return the metadata of the data set."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: Mapping[str, Any]) -> None:
        self._dataset_meta = {**meta, "classes": meta.get("seg_classes", meta["classes"])}

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[dict]) -> None:
        """Collect the predictions for a batch."""
        super().process(data_batch, [s for s in data_samples if "gt_sem_seg" in s])

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Compute MMDetection's metrics, with ``aAcc`` over pixels, not a mean over classes."""
        metrics = super().compute_metrics(results)
        if "aAcc" in metrics:
            right, labelled = (
                sum(float(one[area].sum()) for one in results)
                for area in ("area_intersect", "area_label")
            )
            metrics["aAcc"] = round(100 * right / labelled, 2)
        return metrics
