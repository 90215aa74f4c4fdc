"""Labels of dense prediction: the names under which every part of the adapter finds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

IGNORED = 255
"""Value of a pixel without a class, and of a pixel that is neither edge nor background."""


@dataclass(frozen=True)
class DenseField:
    """Map with a value at every pixel, as label and as prediction.

    Attributes:
        kind: ``"classes"`` and ``"binary"`` count from 0 and have :data:`IGNORED` pixels;
            ``"depth"`` is positive (metres, or its inverse) and 0 where unknown; ``"normals"`` are
            unit vectors in the camera's frame and zero vectors where unknown.
        result: Key in the dictionary that passes through a data set's pipeline; the value is
            ``[H, W]``, of normals ``[H, W, 3]``.
        truth: Field of a data sample with the label; the data are ``[1, H, W]``, of normals
            ``[3, H, W]``.
        prediction: Field of a data sample with the prediction, shaped as the label.
    """

    kind: Literal["classes", "binary", "depth", "normals"]
    result: str
    truth: str
    prediction: str

    @property
    def unknown(self) -> float:
        """Return the value of a pixel without a label, which is also the value of padding."""
        return 0.0 if self.kind in ("depth", "normals") else float(IGNORED)

    @property
    def channels(self) -> int:
        """Return the number of values of a label at a pixel."""
        return 3 if self.kind == "normals" else 1


FIELDS: dict[str, DenseField] = {
    "sem_seg": DenseField("classes", "gt_seg_map", "gt_sem_seg", "pred_sem_seg"),
    "human_parts": DenseField("classes", "gt_human_parts", "gt_human_parts", "pred_human_parts"),
    "depth": DenseField("depth", "gt_depth_map", "gt_depth_map", "pred_depth_map"),
    "normals": DenseField("normals", "gt_normal_map", "gt_normal_map", "pred_normal_map"),
    "edges": DenseField("binary", "gt_edge_map", "gt_edge_map", "pred_edge_map"),
    "saliency": DenseField("binary", "gt_sal_map", "gt_sal_map", "pred_sal_map"),
}
"""Fields by name; MMSegmentation's own fields keep MMSegmentation's names."""
