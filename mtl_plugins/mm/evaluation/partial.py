"""Metrics of several tasks in one run, each on the images that are labelled for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.evaluation import CocoMetric, SemSegMetric
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric


class _Partial(BaseMetric):
    """Leaves out the images that are not labelled.

    An empty result stands for each of them: on several processes MMEngine knows the images that the
    sampler repeats by the number of results.

    Attributes:
        labels: Field of the labels in a data sample.
    """

    labels: str

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[dict]) -> None:
        """Collect the predictions for a batch."""
        for sample in data_samples:
            if self.labels in sample:
                super().process(data_batch, [sample])
            else:
                self.results.append(())

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Compute MMDetection's metrics on the images that are labelled."""
        return super().compute_metrics([one for one in results if one])


@METRICS.register_module()
class PartialCocoMetric(_Partial, CocoMetric):
    """``CocoMetric`` of MMDetection on the images that have boxes."""

    labels = "gt_instances"


@METRICS.register_module()
class PartialSemSegMetric(_Partial, SemSegMetric):
    """``SemSegMetric`` of MMDetection on the images that have a semantic map.

    The classes are the data set's ``seg_classes``, since ``classes`` belong to the boxes.
    """

    labels = "gt_sem_seg"

    @property
    def dataset_meta(self) -> Mapping[str, Any] | None:
        """Return the metadata of the data set."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: Mapping[str, Any]) -> None:
        self._dataset_meta = {**meta, "classes": meta.get("seg_classes", meta["classes"])}

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Compute MMDetection's metrics, with ``aAcc`` over pixels, not a mean over classes."""
        metrics = super().compute_metrics(results)
        if "aAcc" in metrics:
            right, labelled = (
                sum(float(one[area].sum()) for one in results if one)
                for area in ("area_intersect", "area_label")
            )
            metrics["aAcc"] = round(100 * right / labelled, 2)
        return metrics
