"""Metric of the boxes, visible masks, amodal masks and occlusion of the same predictions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment
from terminaltables import AsciiTable

from mtl_plugins.mm.datasets.amodal import AmodalCOCO

Json = dict[str, Any]

_COLUMNS = {
    "bbox_mAP": "bbox_mAP",
    "bbox_mAR": "bbox_AR@100",
    "visible_mAP": "visible_segm_mAP",
    "visible_mAR": "visible_segm_AR@100",
    "amodal_mAP": "segm_mAP",
    "amodal_mAR": "segm_AR@100",
}
"""Columns of paper C's table 1, and the names in ``CocoMetric``."""


@METRICS.register_module()
class AmodalMetric(BaseMetric):
    """Measures of an amodal detector in paper C's table 1, and of the occlusion labels.

    - ``bbox``, ``visible`` and ``amodal``, each with ``_mAP`` and ``_mAR``: COCO's AP and AR (100
      per image) over IoU 0.5 to 0.95. Boxes are amodal. Visible masks are scored as in UOAIS
      (``adet/evaluation/amodalvisible_evaluation.py``): ``visible_mask`` in place of
      ``segmentation``.
    - ``occlusion_accuracy``: share of right labels, occluded or not, among the predictions that
      match an object: one to one, by the IoU of the amodal masks. UOAIS's script for this measure
      (``eval/eval_utils.py``) pairs by F-measure and has no ``iou_thr``.
    - ``occlusion_F1``: F1 of the label *occluded*. A prediction with this label that matches no
      object is a false positive, an occluded object without a match a false negative. UOAIS's
      script instead counts right labels of both kinds, over all predictions and all objects, which
      measures detection rather than occlusion.
    - ``amodal_IoU_occluded`` and ``visible_IoU_occluded``: mean IoU of the predicted amodal or
      visible mask with the amodal mask of an occluded object. The difference is the gain by the
      amodal head. Predictions are paired with objects by *visible* masks here; by amodal masks,
      only objects with a good amodal mask would count.

    The last four look at predictions with a score of at least ``score_thr``. ``occlusion_F1`` is
    nan if no object is occluded and none predicted so, the others if there is no match to measure.

    Args:
        ann_file: File that ``tools/dataset_converters/metagraspnet.py`` wrote.
        score_thr: Least score (0 to 1) of the predictions on which occlusion is measured.
        iou_thr: Least IoU of a match.
        occluded_threshold: Least hidden share (0 to 1) of the amodal mask of an occluded object, as
            in ``PackAmodalInputs``.
        backend_args: File backend that reads ``ann_file``, as in ``CocoMetric``.
        **kwargs: Arguments of ``BaseMetric``.

    Raises:
        ValueError: A record in ``ann_file`` lacks a key.
    """

    default_prefix = "coco"

    def __init__(
        self,
        ann_file: str,
        score_thr: float = 0.5,
        iou_thr: float = 0.5,
        occluded_threshold: float = 0.05,
        backend_args: Json | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.score_thr = score_thr
        self.iou_thr = iou_thr
        self.occluded_threshold = occluded_threshold
        with get_local_path(ann_file, backend_args=backend_args) as path:
            self._truth = AmodalCOCO(path)
        items = ["mAP", "AR@100"]
        self._amodal = CocoMetric(metric=["bbox", "segm"], metric_items=items)
        self._amodal._coco_api = self._truth
        self._visible = CocoMetric(metric="segm", metric_items=items)
        self._visible._coco_api = _visible_masks(self._truth)

    @property
    def dataset_meta(self) -> Mapping[str, Any] | None:
        """Return the metadata of the data set."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: Mapping[str, Any]) -> None:
        self._dataset_meta = self._amodal.dataset_meta = self._visible.dataset_meta = meta

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[dict]) -> None:
        """Collect the predictions for a batch; masks are kept as RLE."""
        visible_samples = []
        for sample in data_samples:
            predicted = sample["pred_instances"]
            visible = {**predicted, "masks": predicted["visible_masks"]}
            visible_samples.append({**sample, "pred_instances": visible})
        self._amodal.process(data_batch, data_samples)
        self._visible.process(data_batch, visible_samples)
        for sample, amodal, visible in zip(
            data_samples, self._amodal.results, self._visible.results, strict=True
        ):
            occluded = sample["pred_instances"]["occluded"].cpu().numpy()
            self.results.append((amodal, visible, occluded))
        self._amodal.results.clear()
        self._visible.results.clear()

    def compute_metrics(self, results: list[tuple[Any, Any, np.ndarray]]) -> dict[str, float]:
        """Compute the metrics of all predictions that :meth:`process` collected, on any rank."""
        amodal, visible, _ = zip(*results, strict=True)
        # Zeros, since CocoMetric reports nothing if nothing at all was predicted.
        found = dict.fromkeys(_COLUMNS.values(), 0.0)
        found.update(self._amodal.compute_metrics(amodal))
        of_visible = self._visible.compute_metrics(visible)
        found.update({f"visible_{name}": value for name, value in of_visible.items()})
        metrics = {name: found[coco_name] for name, coco_name in _COLUMNS.items()}
        metrics.update(self._occlusion(results))
        MMLogger.get_current_instance().info(_table(metrics))
        return metrics

    def _occlusion(self, results: list[tuple[Any, Any, np.ndarray]]) -> dict[str, float]:
        """Measure the labels of objects, and the masks of occluded objects."""
        found: dict[str, list[np.ndarray]] = defaultdict(list)
        for (_, amodal), (_, visible), labels in results:
            confident = np.flatnonzero(amodal["scores"] >= self.score_thr)
            labels = labels[confident] == 1
            amodal_masks = [amodal["masks"][i] for i in confident]
            visible_masks = [visible["masks"][i] for i in confident]
            objects = [one for one in self._truth.imgToAnns[amodal["img_id"]] if not one["iscrowd"]]
            rates = np.array([one["occluded_rate"] for one in objects])
            occluded = rates >= self.occluded_threshold
            true_masks = [_rle(self._truth, one, "segmentation") for one in objects]

            ious = _ious(amodal_masks, true_masks)
            rows, columns = _match(ious, self.iou_thr)
            found["right"].append(labels[rows] == occluded[columns])
            found["hits"].append(labels[rows] & occluded[columns])
            found["predicted"].append(labels)
            found["present"].append(occluded)

            true_visible = [_rle(self._truth, one, "visible_mask") for one in objects]
            rows, columns = _match(_ious(visible_masks, true_visible), self.iou_thr)
            rows, columns = rows[occluded[columns]], columns[occluded[columns]]
            found["amodal"].append(ious[rows, columns])
            found["visible"].append(_ious(visible_masks, true_masks)[rows, columns])
        every = {name: np.concatenate(each) for name, each in found.items()}
        positives = every["predicted"].sum() + every["present"].sum()
        return {
            "occlusion_accuracy": _ratio(every["right"].sum(), every["right"].size),
            # 2 P R / (P + R), where P = hits / predicted and R = hits / present
            "occlusion_F1": _ratio(2 * every["hits"].sum(), positives),
            **{
                f"{answer}_IoU_occluded": _ratio(every[answer].sum(), every[answer].size)
                for answer in ("amodal", "visible")
            },
        }


def _visible_masks(truth: COCO) -> COCO:
    """Return the objects with the visible mask as ``segmentation``."""
    visible = COCO()
    annotations = []
    for annotation in truth.dataset["annotations"]:
        mask = _rle(truth, annotation, "visible_mask")
        area = int(coco_mask.area(mask))
        annotations.append({**annotation, "segmentation": mask, "area": area})
    visible.dataset = {**truth.dataset, "annotations": annotations}
    visible.createIndex()
    return visible


def _rle(truth: COCO, annotation: Json, key: str) -> Json:
    return truth.annToRLE({**annotation, "segmentation": annotation[key]})


def _ious(masks: Sequence[Json], others: Sequence[Json]) -> np.ndarray:
    """Return the IoU of each of ``n`` masks with each of ``m`` others, ``[n, m]``."""
    ious = coco_mask.iou(list(masks), list(others), [0] * len(others))
    return np.array(ious).reshape(len(masks), len(others))


def _match(ious: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the pairs with IoU ``least`` or more and the largest sum."""
    rows, columns = linear_sum_assignment(np.where(ious >= least, ious, 0), maximize=True)
    matched = ious[rows, columns] >= least
    return rows[matched], columns[matched]


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _table(metrics: Mapping[str, float]) -> str:
    rows = [list(metrics), [f"{value:.3f}" for value in metrics.values()]]
    return "\n" + AsciiTable(rows).table
