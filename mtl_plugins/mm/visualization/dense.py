"""Visualizer that draws every map of dense prediction, truth above prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine.dist import master_only
from mmengine.runner import Runner
from mmseg.engine.hooks import SegVisualizationHook
from mmseg.registry import HOOKS, VISUALIZERS
from mmseg.structures import SegDataSample
from mmseg.utils import get_palette
from mmseg.visualization import SegLocalVisualizer

from mtl_plugins.mm.structures import FIELDS, IGNORED, DenseField
from mtl_plugins.mm.transforms.dense_files import read_image

GREY = 224
"""Value of the channels of a pixel without a label; no class of VOC's palette has it."""


@VISUALIZERS.register_module()
class MultiTaskVisualizer(SegLocalVisualizer):
    """Draw a column for the image and one for each map of a sample: truth above prediction.

    Classes have the ``palette`` of the data set, human parts its ``human_parts_palette``; depth is
    drawn from blue (the least true depth) to yellow, on one scale for truth and prediction; normals
    are ``(n + 1) / 2`` as RGB. Unknown pixels are grey.
    """

    @master_only
    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: SegDataSample | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | None = None,
        step: int = 0,
        **kwargs: Any,
    ) -> None:
        """Draw a sample, and show or save the picture.

        Args:
            name: Name of the picture.
            image: RGB image ``[H, W, 3]``.
            data_sample: Sample with truths or predictions of
                :data:`~mtl_plugins.mm.structures.FIELDS`; None for the image alone.
            draw_gt: Whether to draw the truths.
            draw_pred: Whether to draw the predictions.
            show: Whether to open a window instead of saving.
            wait_time: Time for which a window stays open, in seconds; 0 until a key is pressed.
            out_file: Path of the picture; None to give it to the backends.
            step: Number of the step, for the backends.
            **kwargs: Other arguments of ``SegLocalVisualizer``, not used.
        """
        drawn = self.draw(image, data_sample, draw_gt, draw_pred)
        self.set_image(drawn)
        if show:
            self.show(drawn, win_name=name, wait_time=wait_time)
        elif out_file is not None:
            mmcv.imwrite(mmcv.rgb2bgr(drawn), out_file)
        else:
            self.add_image(name, drawn, step)

    def draw(
        self, image: np.ndarray, sample: SegDataSample | None, truth: bool, prediction: bool
    ) -> np.ndarray:
        """Return the picture, RGB of ``[2 H, n W, 3]``, or ``[H, n W, 3]`` with one row."""
        columns = []
        for key, field in FIELDS.items():
            wanted = (field.truth,) * truth + (field.prediction,) * prediction
            maps = [_array(sample, name) for name in wanted]
            if any(one is not None for one in maps):
                columns.append(self._drawn(key, field, maps, image.shape[:2]))
        rows = max([len(column) for column in columns], default=1)
        blank = np.full_like(image, GREY)
        grid = [[image, *[blank] * (rows - 1)], *columns]
        return np.concatenate([np.concatenate(column) for column in grid], axis=1)

    def _drawn(
        self,
        key: str,
        field: DenseField,
        maps: Sequence[np.ndarray | None],
        size: tuple[int, int],
    ) -> list[np.ndarray]:
        """Return the pictures of a field's maps, each ``[H, W, 3]``; grey for None.

        Args:
            key: Name of the field.
            field: The field.
            maps: Truth and prediction, each ``[C, h, w]``.
            size: Height and width of the image, in pixels.
        """
        low, high = _range(maps) if field.kind == "depth" else (0.0, 0.0)
        pictures = []
        for one in maps:
            if one is None:
                pictures.append(np.full((*size, 3), GREY, np.uint8))
                continue
            if field.kind == "classes":
                picture = self._colours(key)[one[0].astype(np.int64)]
            elif field.kind == "depth":
                picture = _depth(one[0], low, high)
            elif field.kind == "normals":
                picture = np.moveaxis((one + 1) * 127.5, 0, -1)
            else:
                picture = np.where(one[0] == IGNORED, GREY, one[0] * 255.0)[..., None].repeat(3, -1)
            picture = np.round(picture).clip(0, 255).astype(np.uint8)
            shape = (size[1], size[0])
            pictures.append(cv2.resize(picture, shape, interpolation=cv2.INTER_NEAREST))
        return pictures

    def _colours(self, key: str) -> np.ndarray:
        """Return the RGB colour of each class from 0 to 255, ``[256, 3]``."""
        name = "palette" if key == "sem_seg" else "human_parts_palette"
        palette = (self.dataset_meta or {}).get(name) or get_palette("voc")
        colours = np.resize(np.array(palette, np.uint8), (256, 3))
        colours[IGNORED] = GREY
        return colours


@HOOKS.register_module()
class MultiTaskVisualizationHook(SegVisualizationHook):
    """``SegVisualizationHook`` that can also read images in npy files, as MTAN's data sets have."""

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[SegDataSample]
    ) -> None:
        """Draw the first sample of every ``interval``-th batch."""
        step = runner.iter + batch_idx
        if self.draw and step % self.interval == 0:
            self._add("val", outputs[0], step)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[SegDataSample]
    ) -> None:
        """Draw every sample."""
        for sample in outputs if self.draw else ():
            self._test_index += 1
            self._add("test", sample, self._test_index)

    def _add(self, split: str, sample: SegDataSample, step: int) -> None:
        image = read_image(sample.img_path)[..., ::-1]
        if image.dtype != np.uint8:
            scale = 255 if image.max() <= 1 else 1  # npy files have either
            image = np.round(scale * image).clip(0, 255).astype(np.uint8)
        self._visualizer.add_datasample(
            f"{split}_{Path(sample.img_path).name}",
            np.ascontiguousarray(image),
            data_sample=sample,
            show=self.show,
            wait_time=self.wait_time,
            step=step,
        )


def _array(sample: SegDataSample | None, name: str) -> np.ndarray | None:
    if sample is None or name not in sample:
        return None
    data = np.asarray(sample.get(name).data.detach().cpu().float())
    return data if data.ndim == 3 else data[None]


def _range(maps: Sequence[np.ndarray | None]) -> tuple[float, float]:
    """Return least and greatest depth of the first map that has a known one."""
    for one in maps:
        if one is not None and (known := one[one > 0]).size:
            return float(known.min()), float(known.max())
    return 0.0, 1.0


def _depth(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = np.clip((depth - low) / max(high - low, 1e-6), 0, 1) * 255
    colours = cv2.applyColorMap(np.round(scaled).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return np.where(depth[..., None] > 0, colours[..., ::-1], GREY)
