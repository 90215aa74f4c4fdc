"""Parts that the tests of the networks of dense prediction share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn

HRNET = {
    "type": "HRNet",
    "norm_eval": False,
    "extra": {
        "stage1": {
            "num_modules": 1,
            "num_branches": 1,
            "block": "BOTTLENECK",
            "num_blocks": (2,),
            "num_channels": (64,),
        },
        "stage2": {
            "num_modules": 1,
            "num_branches": 2,
            "block": "BASIC",
            "num_blocks": (2, 2),
            "num_channels": (18, 36),
        },
        "stage3": {
            "num_modules": 3,
            "num_branches": 3,
            "block": "BASIC",
            "num_blocks": (2, 2, 2),
            "num_channels": (18, 36, 72),
        },
        "stage4": {
            "num_modules": 2,
            "num_branches": 4,
            "block": "BASIC",
            "num_blocks": (2, 2, 2, 2),
            "num_channels": (18, 36, 72, 144),
        },
    },
}
"""HRNet-W18-small-v2, whose numbers are those of MMSegmentation's fcn_hr18s configs."""


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def segnet_head(outputs: int) -> nn.Module:
    """Build the published head of SegNet for as many outputs."""
    return MODELS.build(
        {
            "type": "FCNHead",
            "in_channels": 64,
            "channels": 64,
            "num_convs": 1,
            "concat_input": False,
            "norm_cfg": None,
            "act_cfg": None,
            "dropout_ratio": 0,
            "num_classes": outputs,
            "threshold": 0.3,
        }
    )


def hrnet_head(in_channels: list[int], outputs: int) -> nn.Module:
    """Build the published head of HRNet and MTI-Net for as many outputs."""
    return MODELS.build(
        {
            "type": "FCNHead",
            "in_channels": in_channels,
            "in_index": tuple(range(len(in_channels))),
            "channels": sum(in_channels),
            "input_transform": "resize_concat",
            "kernel_size": 1,
            "num_convs": 1,
            "concat_input": False,
            "dropout_ratio": 0,
            "norm_cfg": {"type": "BN"},
            "num_classes": outputs,
            "threshold": 0.3,
        }
    )


def untrained(outputs: Iterable[Tensor], *modules: nn.Module) -> list[str]:
    """Take one step on the outputs' squares, and return the parameters without a gradient."""
    everything = nn.ModuleList(modules)
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    torch.optim.SGD(everything.parameters(), lr=1e-3).step()
    assert all(p.isfinite().all() for p in everything.parameters())
    return [n for n, p in everything.named_parameters() if p.grad is None or not p.grad.any()]
