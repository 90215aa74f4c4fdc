"""The smallest segmentors for several tasks, and batches with all labels."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.nn import functional as F

from mtl_plugins.mm.structures import FIELDS

HEIGHT, WIDTH, CLASSES, PARTS = 32, 48, 4, 3
BACKBONE = {
    "type": "ResNet",
    "depth": 18,
    "base_channels": 4,
    "stem_channels": 4,
    "norm_cfg": {"type": "BN"},
}


def fcn(**options: Any) -> dict[str, Any]:
    """Config of a small decode head on the third level."""
    own = {"type": "FCNHead", "in_channels": 16, "in_index": 2, "channels": 4, "num_convs": 1}
    return own | {"concat_input": False, "dropout_ratio": 0.0, "norm_cfg": {"type": "BN"}} | options


HEADS = {
    "seg": {"type": "SegmentationHead", "num_classes": CLASSES, "decoder": fcn()},
    "parts": {"type": "PartsHead", "num_classes": PARTS, "decoder": fcn()},
    "depth": {"type": "DepthHead", "decoder": fcn()},
    "normals": {"type": "NormalHead", "decoder": fcn()},
    "edges": {"type": "EdgeHead", "decoder": fcn()},
    "sal": {"type": "SaliencyHead", "decoder": fcn()},
}
FIELD = {
    "seg": "sem_seg",
    "parts": "human_parts",
    "depth": "depth",
    "normals": "normals",
    "edges": "edges",
    "sal": "saliency",
}
"""Name of the label of each of :data:`HEADS`."""


def config(*tasks: str, **options: Any) -> dict[str, Any]:
    """Config of a segmentor with some of :data:`HEADS`, all by default."""
    heads = {task: HEADS[task] for task in tasks or HEADS}
    return {"type": "mmseg.MultiTaskSegmentor", "backbone": BACKBONE, "heads": heads} | options


def labels(height: int = HEIGHT, width: int = WIDTH) -> dict[str, Tensor]:
    """Random labels of an image by name, with a few unknown pixels each."""
    unknown = torch.rand(1, height, width) < 0.2
    classes = {"sem_seg": CLASSES, "human_parts": PARTS, "edges": 2, "saliency": 2}
    made = {name: torch.randint(n, (1, height, width)) for name, n in classes.items()}
    made["depth"] = torch.rand(1, height, width) * 5 + 0.5
    made["normals"] = F.normalize(torch.randn(3, height, width), dim=0)
    made = {name: torch.where(unknown, FIELDS[name].unknown, v) for name, v in made.items()}
    for name in ("sem_seg", "human_parts"):
        made[name] = made[name].long()
    for name in ("edges", "saliency"):
        made[name] = made[name].to(torch.uint8)
    return made


def sample(*names: str, height: int = HEIGHT, width: int = WIDTH, **metainfo: Any) -> SegDataSample:
    """Data sample with the labels of some names, all by default."""
    size = (height, width)
    meta = {"ori_shape": size, "img_shape": size, "pad_shape": size, **metainfo}
    made = SegDataSample(metainfo=meta)
    for name, value in labels(height, width).items():
        if name in names or not names:
            made.set_data({FIELDS[name].truth: PixelData(data=value)})
    return made


def images(count: int = 2) -> Tensor:
    """Random images ``[N, 3, H, W]``."""
    return torch.randn(count, 3, HEIGHT, WIDTH)
