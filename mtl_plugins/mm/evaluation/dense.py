"""Metrics of classes, depth and normals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from prettytable import PrettyTable
from torch import Tensor
from torch.nn import functional as F

from mtl_plugins.mm.evaluation.dense_base import DenseMetric, Sums, check_range
from mtl_plugins.mm.structures import IGNORED


@METRICS.register_module()
class DenseIoUMetric(DenseMetric):
    """``mIoU``, ``aAcc`` and ``mAcc`` in percent, defined as in ``IoUMetric`` of MMSegmentation.

    Unlike there, metrics are not rounded, images may lack the label, and a class out of range is an
    error. The IoU of each class is logged.

    Args:
        num_classes: Number of classes; that of the data set's ``<field>_classes`` or, for
            ``sem_seg``, ``classes`` by default.
        nan_to_num: Score, as a fraction, of a class that neither label nor prediction has. By
            default, the mean leaves it out, as in MTAN's code; the survey of Vandenhende et al.
            counts it as 0.
        field: Name of the field of classes, ``sem_seg`` by default.
        **kwargs: Arguments of :class:`DenseMetric`.
    """

    kinds = ("classes",)
    default_field = "sem_seg"
    names = ("mIoU", "aAcc", "mAcc")

    def __init__(
        self,
        field: str | None = None,
        num_classes: int | None = None,
        nan_to_num: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(field, **kwargs)
        self.num_classes = num_classes
        self.nan_to_num = nan_to_num

    def _classes(self) -> Sequence[Any]:
        if self.num_classes is not None:
            return range(self.num_classes)
        meta = self.dataset_meta or {}
        keys = [f"{self.field}_classes", *(["classes"] if self.field == "sem_seg" else [])]
        for key in keys:
            if key in meta:
                return meta[key]
        raise ValueError(f"num_classes: needed, since the data set's metainfo has no {keys[0]}")

    def measure(self, prediction: Tensor, truth: Tensor, valid: Tensor) -> Sums:
        """Count each class's pixels in the intersection, the union, the prediction, the label."""
        count = len(self._classes())
        for what, values in (("label", truth), ("prediction", prediction)):
            check_range(what, values[valid], count - 1)
        areas = IoUMetric.intersect_and_union(prediction, truth, count, IGNORED)
        return dict(zip(("intersect", "union", "prediction", "label"), areas, strict=True))

    def ratios(self, sums: Sums) -> Mapping[str, Tensor]:
        """Compute the metrics, and the IoU of each class."""
        found = IoUMetric.total_area_to_metrics(*sums.values(), nan_to_num=self.nan_to_num)
        percent = {key: torch.from_numpy(np.asarray(100.0 * found[key])) for key in found}
        means = {f"m{key}": percent[key].nanmean() for key in ("IoU", "Acc")}
        return {"aAcc": percent["aAcc"], "IoU": percent["IoU"], **means}

    def scores(self, ratios: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the metrics, and log the IoU of each class."""
        table = PrettyTable(["Class", "IoU"])
        for name, value in zip(self._classes(), ratios["IoU"].tolist(), strict=True):
            table.add_row([name, f"{value:.2f}"])
        print_log(f"{self.prefix}, per class:\n{table}", logger="current")
        return super().scores(ratios)


@METRICS.register_module()
class DenseDepthMetric(DenseMetric):
    """Errors of depth or inverse depth, in the label's unit.

    ``rmse``, ``abs_err`` and ``abs_rel`` are the columns of the papers (``abs_rel`` is MTAN's "rel
    err"). The others are ``DepthMetric``'s of MMSegmentation, as fractions. That metric averages
    over images, as ``average="image"`` does here.

    Args:
        depth_metrics: Names of the metrics to report; all by default.
        min_depth_eval: Depth that a label must exceed to count; 0 is an unknown depth.
        max_depth_eval: Depth below which a label must lie to count.
        min_prediction: Value that replaces smaller predictions in ``d1`` to ``d3`` and under
            logarithms. The other metrics take predictions as they are.
        field: Name of the field of depth, ``depth`` by default.
        **kwargs: Arguments of :class:`DenseMetric`.

    Raises:
        ValueError: A name in ``depth_metrics`` is unknown.
    """

    kinds = ("depth",)
    default_field = "depth"
    METRICS = (
        *("rmse", "abs_err", "abs_rel", "sq_rel", "rmse_log", "log10", "silog"),
        *("d1", "d2", "d3"),
    )

    def __init__(
        self,
        field: str | None = None,
        depth_metrics: Sequence[str] | None = None,
        min_depth_eval: float = 0.0,
        max_depth_eval: float = math.inf,
        min_prediction: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(field, **kwargs)
        names = self.METRICS if depth_metrics is None else tuple(depth_metrics)
        unknown = [name for name in names if name not in self.METRICS]
        if unknown:
            raise ValueError(
                f"{type(self).__name__}.depth_metrics: expected names among {self.METRICS}, got "
                f"{unknown}"
            )
        self.names = names  # type: ignore[misc]
        self.min_depth_eval = min_depth_eval
        self.max_depth_eval = max_depth_eval
        self.min_prediction = min_prediction

    def valid(self, truth: Tensor) -> Tensor:
        """Return the mask ``[H, W]`` of the known depths that count."""
        return (truth > max(self.min_depth_eval, 0.0)) & (truth < self.max_depth_eval)

    def measure(self, prediction: Tensor, truth: Tensor, valid: Tensor) -> Sums:
        """Sum the errors."""
        predicted, true = prediction[valid].double(), truth[valid].double()
        error = predicted - true
        positive = predicted.clamp(min=self.min_prediction)
        log = positive.log() - true.log()
        ratio = torch.maximum(positive / true, true / positive)
        return {
            "count": valid.sum(),
            "abs": error.abs().sum(),
            "square": error.square().sum(),
            "abs_rel": (error.abs() / true).sum(),
            "sq_rel": (error.square() / true).sum(),
            "log": log.sum(),
            "abs_log": log.abs().sum(),
            "square_log": log.square().sum(),
            **{f"d{power}": (ratio < 1.25**power).sum() for power in (1, 2, 3)},
        }

    def ratios(self, sums: Sums) -> Mapping[str, Tensor]:
        """Compute the metrics."""
        mean = {key: value / sums["count"] for key, value in sums.items()}
        return {
            "rmse": mean["square"].sqrt(),
            "abs_err": mean["abs"],
            "abs_rel": mean["abs_rel"],
            "sq_rel": mean["sq_rel"],
            "rmse_log": mean["square_log"].sqrt(),
            "log10": mean["abs_log"] / math.log(10.0),
            "silog": (mean["square_log"] - 0.5 * mean["log"].square()).sqrt(),
            "d1": mean["d1"],
            "d2": mean["d2"],
            "d3": mean["d3"],
        }


@METRICS.register_module()
class NormalMetric(DenseMetric):
    """Angles between predicted and true normals, in degrees, and the share of small ones.

    Both vectors are divided by their lengths; a predicted zero vector is off by 90 degrees.

    - ``mean_angle``, over pixels.
    - ``median_angle``, over pixels: from a histogram, hence within ``resolution`` of the lower
      median (the ⌈n/2⌉-th smallest of n angles).
    - ``within_11.25``, ``within_22.5`` and ``within_30``: percentage of the pixels with a smaller
      angle.

    Published medians on NYUv2 with 13 classes are mostly means over batches of 2 images:
    ``average=2``.

    Args:
        resolution: Width in degrees of the bins of the histogram.
        field: Name of the field of normals, ``normals`` by default.
        **kwargs: Arguments of :class:`DenseMetric`.
    """

    kinds = ("normals",)
    default_field = "normals"
    names = ("mean_angle", "median_angle", "within_11.25", "within_22.5", "within_30")

    def __init__(self, field: str | None = None, resolution: float = 0.02, **kwargs: Any) -> None:
        super().__init__(field, **kwargs)
        self.resolution = resolution

    def valid(self, truth: Tensor) -> Tensor:
        """Return the mask ``[H, W]`` of the normals that are no zero vectors."""
        return (truth != 0).any(0)

    def measure(self, prediction: Tensor, truth: Tensor, valid: Tensor) -> Sums:
        """Sum the angles, and count them by size."""
        predicted, true = (
            F.normalize(vectors[:, valid].double(), dim=0) for vectors in (prediction, truth)
        )
        angles = (predicted * true).sum(0).clamp(-1.0, 1.0).acos().rad2deg()
        known = angles[angles.isfinite()]
        bins = math.ceil(180.0 / self.resolution)
        bin_of = (known / self.resolution).long().clamp(max=bins - 1)
        return {
            "count": valid.sum(),
            "angle": angles.sum(),
            "histogram": torch.bincount(bin_of, minlength=bins).int(),
            **{name: (angles < float(name[7:])).sum() for name in self.names[2:]},
        }

    def ratios(self, sums: Sums) -> Mapping[str, Tensor]:
        """Compute the metrics."""
        count, histogram = sums["count"], sums["histogram"]
        upto = histogram.cumsum(0)
        half = count / 2
        found = int(torch.searchsorted(upto, half).clamp(max=len(upto) - 1))
        inside = 1 - (upto[found] - half) / histogram[found]  # share of the bin below the median
        median = (found + inside) * self.resolution
        return {
            "mean_angle": sums["angle"] / count,
            # Angles that are NaN are in no bin: of those, there is no median.
            "median_angle": torch.where(upto[-1] == count, median, torch.nan),
            **{name: 100.0 * sums[name] / count for name in self.names[2:]},
        }
