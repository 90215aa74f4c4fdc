"""MMDetection's detectors by their own configs, with a tiny trunk and tiny heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmdet
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict
from models import build_detector
from torch import Tensor, nn

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
SIZE, CLASSES, CHANNELS = 64, 3, 64  # two a group of 32
CHANNEL_KEYS = ("channels", "channel", "embed_dims", "dim", "dims", "num_feats")
LESS = {
    "stacked_convs": 1,
    "num_convs": 1,
    "num_layers": 1,
    "num_queries": 10,
    "num_proposals": 10,
}


@MODELS.register_module()
class TinyPyramid(nn.Module):
    """A pyramid of one convolution a level, without batch statistics."""

    def __init__(self, strides: list[int], channels: list[int]) -> None:
        super().__init__()
        self.strides = strides
        self.levels = nn.ModuleList(nn.Conv2d(3, c, 3, padding=1) for c in channels)

    def init_weights(self) -> None:
        pass

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            conv(nn.functional.avg_pool2d(images, stride, ceil_mode=True)).relu()
            for conv, stride in zip(self.levels, self.strides, strict=True)
        )


def tiny(value: Any, key: str = "") -> Any:
    """A config with few classes, channels and layers."""
    if isinstance(value, dict):
        return ConfigDict({k: tiny(v, k) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(tiny(v, key) for v in value)
    if not isinstance(value, int):
        return value
    if key == "num_feats":
        return CHANNELS // 2
    if key == "num_classes":
        return CLASSES
    if key.endswith(CHANNEL_KEYS) and value > 64:
        return CHANNELS
    return min(value, LESS.get(key, value))


def detector(
    config: str, strides: list[int], channels: list[int] | None = None, **changes: Any
) -> nn.Module:
    """Builds the detector of one of MMDetection's configs."""
    cfg = Config({"model": tiny(Config.fromfile(CONFIGS / config).model)})
    cfg.merge_from_dict({f"model.{key}": value for key, value in changes.items()})
    cfg = cfg.model
    channels = channels or [CHANNELS] * len(strides)
    cfg.backbone = ConfigDict(type="TinyPyramid", strides=strides, channels=channels)
    cfg.neck = None
    if cfg.data_preprocessor.type != "BoxInstDataPreprocessor":
        cfg.data_preprocessor = ConfigDict(type="DetDataPreprocessor", pad_mask=True, pad_seg=True)
    torch.manual_seed(0)
    return build_detector(cfg).train()


def batch_of(model: nn.Module, count: int = 4) -> dict[str, Any]:
    """Images with objects, masks and a semantic map, as the model gets them."""
    found = demo_mm_inputs(
        count,
        [[3, SIZE, SIZE]] * count,
        num_items=[2, 3, 1, 2][:count],
        num_classes=CLASSES,
        with_mask=True,
        with_semantic=True,
    )
    return model.data_preprocessor(found, True)
