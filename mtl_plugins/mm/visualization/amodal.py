"""Visualizer that draws objects with the hidden part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from mmdet.registry import VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, bitmap_to_polygon
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData

_TEN: Any = matplotlib.colormaps["tab10"]
_COLOURS = [tuple(round(255 * part) for part in colour) for colour in _TEN.colors]


@VISUALIZERS.register_module()
class AmodalVisualizer(DetLocalVisualizer):
    """Draw each object in one colour, with a filled visible mask and an outlined amodal mask.

    An occluded object has a dashed outline, and a label with the probability of occlusion if one is
    predicted. Truth and predictions have to be in the size of the image: in the pipeline
    of a data set to be drawn, annotations are loaded after ``Resize``, as MMDetection's are.

    Args:
        name: Name of the visualizer's instance.
        alpha: Opacity of the masks, 0 to 1.
        **kwargs: Other arguments of ``DetLocalVisualizer``.
    """

    def __init__(self, name: str = "visualizer", alpha: float = 0.5, **kwargs: Any) -> None:
        super().__init__(name, alpha=alpha, **kwargs)

    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: DetDataSample | None = None,
        *args: Any,
        out_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Draw a sample; the folder of the image becomes part of the name of the drawing.

        MetaGraspNet's images have the same names in every scene, so drawings would be overwritten.
        """
        if out_file is not None and data_sample is not None and "img_path" in data_sample:
            path = Path(out_file)
            out_file = str(path.with_name(f"{Path(data_sample.img_path).parent.name}_{path.name}"))
        super().add_datasample(name, image, data_sample, *args, out_file=out_file, **kwargs)

    def _draw_instances(
        self,
        image: np.ndarray,
        instances: InstanceData,
        classes: Sequence[str] | None,
        palette: Sequence[Any] | None,
    ) -> np.ndarray:
        if "visible_masks" not in instances:
            return super()._draw_instances(image, instances, classes, palette)
        self.set_image(image)
        amodal, visible = _bools(instances.masks), _bools(instances.visible_masks)
        colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(instances))]
        self.draw_binary_masks(visible, colors=colours, alphas=self.alpha)
        for i, (mask, colour) in enumerate(zip(amodal, colours, strict=True)):
            # Shifted, so that the outline runs through the middle of the pixels at the edge.
            outlines = [outline + 0.5 for outline in bitmap_to_polygon(mask)[0]]
            if not outlines:
                continue
            occluded = bool(instances.occluded[i])
            self.draw_polygons(
                outlines,
                edge_colors=colour,
                line_styles="--" if occluded else "-",
                line_widths=self.line_width,
                alpha=1.0,
            )
            if occluded:
                corners = np.concatenate(outlines)
                self._label(instances, i, np.array([corners[:, 0].mean(), corners[:, 1].min()]))
        return self.get_image()

    def _label(self, instances: InstanceData, i: int, position: np.ndarray) -> None:
        text = "occluded"
        if "occlusion_scores" in instances:
            text += f" {float(instances.occlusion_scores[i]):.2f}"
        self.draw_texts(
            text,
            position,
            # Bounded, since MMEngine's font fills an image of less than 300 pixels.
            font_sizes=min(0.8 * self._default_font_size, self.width / 30),
            colors=self.text_color,
            horizontal_alignments="center",
            vertical_alignments="center",
            bboxes=[{"facecolor": "black", "alpha": 0.7, "pad": 0.7, "edgecolor": "none"}],
        )


def _bools(masks: Any) -> np.ndarray:
    """Return masks as bool ``[n, H, W]``."""
    return np.asarray(masks.masks if isinstance(masks, BitmapMasks) else masks, bool)
