"""Base of the metrics of dense prediction, pooled over the set or averaged over images."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from torch import Tensor

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
