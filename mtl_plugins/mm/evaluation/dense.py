"""Metrics of dense prediction, pooled over the set or averaged over images."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from prettytable import PrettyTable
from torch import Tensor
from torch.nn import functional as F

from mtl_plugins.mm.structures import FIELDS, IGNORED

Sums = dict[str, Tensor]


class DenseMetric(BaseMetric):
    """Base of the metrics of a field of :data:`~mtl_plugins.mm.structures.FIELDS`.

    Each image leaves only sums, from which the ratios of any set of images follow. An image that
    lacks the label, or has no labelled pixel, counts nowhere; it leaves empty sums, since MMEngine
    counts results to drop the images that a distributed sampler repeats. A set without any labelled
    pixel scores NaN, with a warning.

    Args:
        field: Name of the field; the class's usual one by default.
        task: Prefix of the metrics' names; the field by default.
        average: Images over which pixels are pooled: ``"set"``, ``"image"``, or a number of
            consecutive images, as in code that averages over batches. The ratios of each group
            count alike in the mean over groups.
        **kwargs: Arguments of ``BaseMetric``.

    Raises:
        ValueError: ``field`` or ``average`` is none of these.
    """

    kinds: ClassVar[tuple[str, ...]]
    default_field: ClassVar[str]
    default_average: ClassVar[str] = "set"
    names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        field: str | None = None,
        task: str | None = None,
        average: str | int | None = None,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        field = self.default_field if field is None else field
        valid = [key for key, value in FIELDS.items() if value.kind in self.kinds]
        if field not in valid:
            raise ValueError(f"{name}.field: expected one of {valid}, got {field!r}")
        average = self.default_average if average is None else average
        counted = isinstance(average, int) and not isinstance(average, bool) and average > 0
        if average not in ("set", "image") and not counted:
            raise ValueError(
                f"{name}.average: expected 'set', 'image' or a number of images, got {average!r}"
            )
        kwargs.setdefault("prefix", task or field)
        super().__init__(**kwargs)
        self.field = field
        self.average = average

    @abstractmethod
    def measure(self, prediction: Tensor, truth: Tensor, valid: Tensor) -> Sums:
        """Compute the sums over an image's pixels.

        Args:
            prediction: Predicted map ``[H, W]``, of normals ``[3, H, W]``.
            truth: Label, shaped alike.
            valid: Mask ``[H, W]`` of the pixels that count; at least one does.
        """

    @abstractmethod
    def ratios(self, sums: Sums) -> Mapping[str, Tensor]:
        """Compute what is averaged over groups, from the sums over the images of a group."""

    def scores(self, ratios: Mapping[str, Tensor]) -> dict[str, float]:
        """Compute the metrics from the mean ratios."""
        return {name: float(ratios[name]) for name in self.names}

    def valid(self, truth: Tensor) -> Tensor:
        """Return the mask ``[H, W]`` of the pixels of a label that count."""
        return truth != IGNORED

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[dict]) -> None:
        """Collect the sums of each image of a batch.

        Raises:
            ValueError: A labelled image has no prediction, or one that is not shaped as the label,
                or a value is out of range.
        """
        for sample in data_samples:
            try:
                self.results.append(self._sums(sample))
            except ValueError as error:
                where = f"{type(self).__name__}, {sample.get('img_path', 'image without a path')}"
                raise ValueError(f"{where}: {error}") from error

    def _sums(self, sample: Mapping[str, Any]) -> Sums:
        field = FIELDS[self.field]
        if field.truth not in sample:
            return {}
        if field.prediction not in sample:
            raise ValueError(f"{field.truth}, but no {field.prediction}: no head predicts it")
        # On the CPU, whose histograms are deterministic and which has float64 everywhere.
        prediction, truth = (sample[key]["data"].cpu() for key in (field.prediction, field.truth))
        if prediction.shape != truth.shape:
            raise ValueError(
                f"{field.prediction} is {tuple(prediction.shape)}, {field.truth} "
                f"{tuple(truth.shape)}"
            )
        if field.channels == 1:
            prediction, truth = prediction.squeeze(0), truth.squeeze(0)
        valid = self.valid(truth)
        if not valid.any():
            return {}
        # A clone, since a sum may hold on to the memory of its whole map.
        return {key: one.clone() for key, one in self.measure(prediction, truth, valid).items()}

    def compute_metrics(self, results: list[Sums]) -> dict[str, float]:
        """Compute the metrics from the sums of each image."""
        sizes = {"set": max(len(results), 1), "image": 1}
        size = sizes.get(self.average, self.average)  # type: ignore[arg-type]
        groups = []
        for first in range(0, len(results), size):
            images = [sums for sums in results[first : first + size] if sums]
            if images:
                # In float64: float32 does not count beyond 2^24 pixels.
                total = {
                    key: torch.stack([one[key] for one in images]).sum(0, dtype=torch.float64)
                    for key in images[0]
                }
                groups.append(self.ratios(total))
        if not groups:
            print_log(
                f"{type(self).__name__}: no image has a labelled pixel of {self.field}; all "
                f"metrics of {self.prefix} are NaN.",
                logger="current",
                level=logging.WARNING,
            )
            return dict.fromkeys(self.names, math.nan)
        return self.scores(
            {key: torch.stack([one[key] for one in groups]).nanmean(0) for key in groups[0]}
        )


def check_range(what: str, values: Tensor, most: float) -> None:
    """Refuse values outside [0, ``most``].

    Raises:
        ValueError: A value is outside, or NaN.
    """
    outside = ~((values >= 0) & (values <= most))
    if outside.any():
        raise ValueError(f"{what} has {values[outside][0].item()}, outside 0 to {most}")


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
