"""Preprocessor of images that have semantic maps of some sources only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import PixelData
from torch.nn import functional as F

from mtl_plugins.mm.structures import IGNORED

SOURCES = ("gt", "pseudo")
"""Sources of labels: ``<source>_instances`` and ``<source>_sem_seg`` of a data sample."""


@MODELS.register_module()
class PartialDataPreprocessor(DetDataPreprocessor):
    """Pad the semantic maps of each image that has some.

    MMDetection's preprocessor looks at the first image of a batch alone to tell whether all images
    have a map.

    Args:
        pad_seg: Whether to pad the maps to the size of the batch.
        seg_pad_value: Class number of the padded pixels.
        **kwargs: Other arguments of ``DetDataPreprocessor``.
    """

    def __init__(self, *, pad_seg: bool = True, seg_pad_value: int = IGNORED, **kwargs: Any):
        super().__init__(pad_seg=pad_seg, seg_pad_value=seg_pad_value, **kwargs)

    def pad_gt_sem_seg(self, batch_data_samples: Sequence[DetDataSample]) -> None:
        """Pad ``gt_sem_seg`` and ``pseudo_sem_seg`` at the right and at the bottom."""
        for sample in batch_data_samples:
            height, width = sample.batch_input_shape
            for name in (f"{source}_sem_seg" for source in SOURCES):
                if name in sample:
                    labels = sample.get(name).sem_seg
                    pad = (0, width - labels.shape[-1], 0, height - labels.shape[-2])
                    padded = F.pad(labels, pad, value=self.seg_pad_value)
                    sample.set_field(PixelData(sem_seg=padded), name)
