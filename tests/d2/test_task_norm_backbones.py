"""Task-specific norms of Detectron2's trunks, whose convolutions call their norms themselves."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn

from mtl_plugins.task_norm import convert_task_norm


def build(norm: str) -> nn.Module:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    return build_backbone(cfg)


def run(module: nn.Module) -> None:
    module(torch.zeros(1, 3, 32, 32))


def test_every_convolution_is_paired_with_its_own_norm() -> None:
    backbone = build("BN")
    convs = {name for name, m in backbone.named_modules() if isinstance(m, nn.Conv2d)}
    pairs = convert_task_norm(backbone, ["box", "mask"], run)
    assert pairs == {name: f"{name}.norm" for name in convs}
    assert len(pairs) == 53


def test_frozen_norms_are_named() -> None:
    with pytest.raises(ValueError, match="its norms are FrozenBatchNorm2d"):
        convert_task_norm(build("FrozenBN"), ["box", "mask"], run)
