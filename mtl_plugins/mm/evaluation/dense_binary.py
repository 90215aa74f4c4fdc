"""Metrics of edges and of saliency, whose predictions are probabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmseg.registry import METRICS
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional as F

from mtl_plugins.mm.evaluation.dense_base import DenseMetric, Sums, check_range
from mtl_plugins.mm.thinning import thin


class BinaryMetric(DenseMetric):
    """Base of the metrics of a probability."""

    kinds = ("binary",)

    def measure(self, prediction: Tensor, truth: Tensor, valid: Tensor) -> Sums:
        """Compute the sums over an image's pixels, whose values were checked."""
        check_range("label", truth[valid], 1)
        check_range("prediction, a probability,", prediction[valid], 1)
        return self.measure_checked(prediction.double(), (truth == 1) & valid, valid)

    @abstractmethod
    def measure_checked(self, prediction: Tensor, positive: Tensor, valid: Tensor) -> Sums:
        """Compute the sums over an image's pixels.

        Args:
            prediction: Probabilities ``[H, W]``.
            positive: Mask ``[H, W]`` of the positive pixels of the label.
            valid: Mask ``[H, W]`` of the pixels that count.
        """


@METRICS.register_module()
class SaliencyMetric(BinaryMetric):
    """``maxF`` and ``mIoU`` of the salient region, in percent.

    Precision, recall and IoU of the pixels with a greater probability than a threshold are averaged
    over images. ``maxF`` is the greatest F-measure of a mean precision and a mean recall,
    ``mIoU`` the greatest mean IoU, over thresholds. An image where nothing is salient scores IoU 1
    where nothing is predicted; precision is 0 where nothing is predicted, recall where nothing is
    salient. These are the definitions of the survey of Vandenhende et al., hence of paper D. InvPT
    pools pixels over the set instead: ``average="set"``.

    Args:
        thresholds: Probabilities; 0.2, 0.25, ..., 0.9 by default.
        beta_squared: Weight of recall in the F-measure: 1 in the survey and InvPT, 0.3 in the
            literature on saliency.
        field: Name of the field, ``saliency`` by default.
        **kwargs: Arguments of :class:`DenseMetric`; ``average`` is ``"image"`` by default.
    """

    default_field = "saliency"
    default_average = "image"
    names = ("maxF", "mIoU")

    def __init__(
        self,
        field: str | None = None,
        thresholds: Sequence[float] | None = None,
        beta_squared: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(field, **kwargs)
        default = np.linspace(0.2, 0.9, 15)
        self.thresholds = [float(one) for one in (default if thresholds is None else thresholds)]
        self.beta_squared = beta_squared

    def measure_checked(self, prediction: Tensor, positive: Tensor, valid: Tensor) -> Sums:
        """Count the pixels that are right, predicted and salient, at each threshold."""
        probability, salient = prediction[valid], positive[valid]
        chosen = [probability > threshold for threshold in self.thresholds]
        return {
            "right": torch.stack([(one & salient).sum() for one in chosen]),
            "predicted": torch.stack([one.sum() for one in chosen]),
            "salient": salient.sum().expand(len(chosen)),
        }

    def ratios(self, sums: Sums) -> Mapping[str, Tensor]:
        """Compute precision, recall and IoU at each threshold."""
        right, predicted, salient = sums["right"], sums["predicted"], sums["salient"]
        return {
            "precision": _share(right, predicted),
            "recall": _share(right, salient),
            "iou": _share(right, predicted + salient - right, empty=1.0),
        }

    def scores(self, ratios: Mapping[str, Tensor]) -> dict[str, float]:
        """Compute the metrics at the best threshold of each."""
        measure = _f_measure(ratios["precision"], ratios["recall"], self.beta_squared)
        return {"maxF": 100.0 * float(measure.max()), "mIoU": 100.0 * float(ratios["iou"].max())}


@METRICS.register_module()
class EdgeMetric(BinaryMetric):
    """Balanced cross entropy ``loss`` of edges, and ``odsF`` in percent.

    ``odsF`` is the F-measure at the best threshold for the set. At each threshold, the edges (the
    pixels with at least this probability) are thinned to a width of one pixel and matched one to
    one with the true edges within a distance. Precision is the share of edges that are matched,
    recall that of true edges.

    ``loss`` is the mean over pixels. (The survey's online meter takes probabilities for logits.)

    Differences from the MATLAB code (correspondPixels of BSDS, used by seism and by Dollár's
    toolbox): the matching has the greatest possible size, which there is approximated, the
    F-measure is not interpolated between thresholds, and nothing is suppressed beside a greater
    probability before thinning. Thinning is Guo and Hall's, as in MATLAB. Edges on ignored pixels
    are removed after thinning.

    Args:
        thresholds: Number of thresholds, evenly spaced within (0, 1): 0.01 to 0.99 by default. Each
            takes some 20 to 80 ms for an image of 480 x 640 pixels, so that fewer are apt for
            validation during training; 0 reports no ``odsF``.
        max_dist: Greatest distance of a match as a fraction of the image's diagonal; the default is
            that of BSDS.
        thin_truth: Whether true edges are thinned too, as is apt if they are wider than a pixel.
        pos_weight: Weight of the edges in ``loss``; that of other pixels is ``1 - pos_weight``.
        field: Name of the field, ``edges`` by default.
        **kwargs: Arguments of :class:`DenseMetric`. With ``average="image"``, precision and recall
            are averaged over images at each threshold.
    """

    default_field = "edges"

    def __init__(
        self,
        field: str | None = None,
        thresholds: int = 99,
        max_dist: float = 0.0075,
        thin_truth: bool = False,
        pos_weight: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(field, **kwargs)
        self.names = ("loss", "odsF") if thresholds else ("loss",)  # type: ignore[misc]
        self.thresholds = np.arange(1, thresholds + 1) / (thresholds + 1)
        self.max_dist = max_dist
        self.thin_truth = thin_truth
        self.pos_weight = pos_weight

    def measure_checked(self, prediction: Tensor, positive: Tensor, valid: Tensor) -> Sums:
        """Sum the loss, and count the edges that are matched, predicted and true."""
        true = positive[valid].double()
        weight = true * self.pos_weight + (1 - true) * (1 - self.pos_weight)
        loss = F.binary_cross_entropy(prediction[valid], true, weight, reduction="sum")
        sums = {"count": valid.sum(), "loss": loss}
        if len(self.thresholds):
            matched, predicted, there = self._match(
                *(one.numpy() for one in (prediction, positive, valid))
            )
            sums |= {"matched": matched, "predicted": predicted, "true": there}
        return sums

    def _match(
        self, prediction: np.ndarray, positive: np.ndarray, valid: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        truth = thin(positive) if self.thin_truth else positive
        places = np.argwhere(truth)
        distance = self.max_dist * np.hypot(*truth.shape)
        matched, predicted = [], []
        last = None
        for threshold in self.thresholds:
            edges = prediction >= threshold
            if last is None or (edges != last).any():  # else, nothing changes
                found = np.argwhere(thin(edges) & valid)
                count = count_matches(found, places, distance)
            last = edges
            matched.append(count)
            predicted.append(len(found))
        there = torch.tensor(len(places)).expand(len(matched))
        return torch.tensor(matched), torch.tensor(predicted), there

    def ratios(self, sums: Sums) -> Mapping[str, Tensor]:
        """Compute the mean loss, and precision and recall at each threshold."""
        ratios = {"loss": sums["loss"] / sums["count"]}
        if len(self.thresholds):
            ratios["precision"] = _share(sums["matched"], sums["predicted"])
            ratios["recall"] = _share(sums["matched"], sums["true"])
        return ratios

    def scores(self, ratios: Mapping[str, Tensor]) -> dict[str, float]:
        """Compute the metrics."""
        scores = {"loss": float(ratios["loss"])}
        if len(self.thresholds):
            measure = _f_measure(ratios["precision"], ratios["recall"], 1.0)
            scores["odsF"] = 100.0 * float(measure.max())
        return scores


def _share(part: Tensor, whole: Tensor, empty: float = 0.0) -> Tensor:
    return torch.where(whole > 0, part / whole, empty)


def _f_measure(precision: Tensor, recall: Tensor, beta_squared: float) -> Tensor:
    return _share((1 + beta_squared) * precision * recall, beta_squared * precision + recall)


def count_matches(found: np.ndarray, true: np.ndarray, distance: float) -> int:
    """Return the size of the greatest one-to-one matching of points within a distance.

    Args:
        found: Points ``[n, 2]``.
        true: Other points ``[m, 2]``.
        distance: Greatest distance of a pair.
    """
    if not len(found) or not len(true):
        return 0
    pairs = KDTree(found).sparse_distance_matrix(KDTree(true), distance, output_type="ndarray")
    near = csr_matrix(
        (np.ones(len(pairs), bool), (pairs["i"], pairs["j"])), shape=(len(found), len(true))
    )
    return int((maximum_bipartite_matching(near, perm_type="column") >= 0).sum())
