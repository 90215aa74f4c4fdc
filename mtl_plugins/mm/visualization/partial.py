"""Visualizer that draws boxes, and semantic maps with separate classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.registry import VISUALIZERS
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import PixelData


@VISUALIZERS.register_module()
class PartialVisualizer(DetLocalVisualizer):
    """Draw semantic maps with the ``seg_classes`` and ``seg_palette`` of the data set."""

    def _draw_sem_seg(
        self,
        image: np.ndarray,
        sem_seg: PixelData,
        classes: Sequence[str] | None,
        palette: Sequence[Any] | None,
    ) -> np.ndarray:
        meta = self.dataset_meta
        names, colours = meta.get("seg_classes", classes), meta.get("seg_palette", palette)
        return super()._draw_sem_seg(image, sem_seg, names, colours)
