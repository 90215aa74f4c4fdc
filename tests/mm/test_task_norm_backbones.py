"""Task-specific norms of the trunks of OpenMMLab: every norm behind a convolution is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dense_networks import HRNET
from mmengine.runner.checkpoint import load_state_dict
from mmseg.registry import MODELS
from torch import nn

from mtl_plugins.task_norm import TaskBatchNorm, convert_task_norm, task_norm

RESNET: dict[str, Any] = {"type": "ResNet", "depth": 50}
SMALL: dict[str, Any] = {"type": "ResNet", "depth": 18, "base_channels": 4, "stem_channels": 4}


def run(module: nn.Module) -> None:
    module(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("cfg", "number"),
    [(HRNET, 144), (RESNET, 53), (RESNET | {"type": "ResNetV1c"}, 55)],
    ids=["hrnet_w18s", "resnet50", "resnetv1c50"],
)
def test_every_convolution_is_paired(cfg: dict[str, Any], number: int) -> None:
    backbone = MODELS.build(cfg)
    convs = {name: m for name, m in backbone.named_modules() if isinstance(m, nn.Conv2d)}
    norms = {name: m for name, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    pairs = convert_task_norm(backbone, ["seg", "depth"], run)
    assert set(pairs) == set(convs) and len(pairs) == number
    assert set(pairs.values()) == set(norms) and len(norms) == number
    for conv, norm in pairs.items():
        found = backbone.get_submodule(norm)
        assert isinstance(found, TaskBatchNorm) and found.conv is convs[conv]
        assert found.conv.out_channels == norms[norm].num_features


def test_stages_freeze_and_plain_weights_load_as_openmmlab_does_it() -> None:
    plain = MODELS.build(SMALL)
    backbone = MODELS.build(SMALL | {"frozen_stages": 1, "norm_eval": True})
    convert_task_norm(backbone, ["seg", "depth"], run)
    load_state_dict(backbone, plain.state_dict(), strict=True)
    backbone.train()
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert not any(p.requires_grad for p in backbone.layer1.parameters())
    plain.eval()
    batch = torch.randn(1, 3, 32, 32)
    for task in ("seg", "depth"):
        with task_norm(backbone).of(task):
            for ours, theirs in zip(backbone(batch), plain(batch), strict=True):
                torch.testing.assert_close(ours, theirs)
