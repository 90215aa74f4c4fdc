"""Small models for the tests: a real detector, and a trunk with heads. And a method for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from torch import Tensor, nn

import mtl_plugins.mm  # noqa: F401
from mtl_plugins import MultiTaskBackward
from mtl_plugins.aggregation import AGGREGATORS, GramianAggregator
from mtl_plugins.draws import RandomMethod
from mtl_plugins.task_norm import TaskNorm
from mtl_plugins.tasks import TaskGroups

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "mask_rcnn" / "mask-rcnn_r18-small_fpn_coco.py"
DETECTION_MASK = {"detection": ["loss_rpn_*", "loss_cls", "loss_bbox"], "mask": "loss_mask"}
# The small UOAIS-Net, made smaller still.
NARROW_UOAIS = {
    "model.backbone.base_channels": 8,
    "model.neck.in_channels": [8, 16, 32, 64],
    "model.neck.out_channels": 16,
    **{
        f"model.{norm}.num_groups": 8
        for norm in ("backbone.norm_cfg", "backbone.fusion_norm_cfg", "neck.norm_cfg")
    },
    "model.rpn_head.in_channels": 16,
    "model.rpn_head.feat_channels": 16,
    **{f"model.roi_head.{part}_roi_extractor.out_channels": 16 for part in ("bbox", "mask")},
    **{
        f"model.roi_head.{head}_head.{width}": 16
        for head in ("bbox", "visible_mask", "mask", "occlusion")
        for width in ("in_channels", "conv_out_channels")
    },
}


# Those that need more than losses: a step for each task in turn, norms of each task, or a function
# that computes the losses once more.
SPECIAL = [name for name, cls in AGGREGATORS.items() if cls.takes_turns or cls.looks_ahead]
ORDINARY = [name for name in AGGREGATORS if name not in SPECIAL]
GRADIENT_METHODS = [name for name in ORDINARY if AGGREGATORS[name].needs_gradients]
RANDOM = [name for name, cls in AGGREGATORS.items() if issubclass(cls, RandomMethod)]
# What they cannot do without: a method's name, the length of the run, a model like any other.
# Or, of five, a form that is simple: without a mean over earlier steps, lengths, loss, clipping.
NEEDED = {
    "TorchJD": {"name": "UPGradWeighting"},
    "MCLGS": {"total_steps": 100, "a0": 1.0},
    "RotoGrad": {"rotate": False},  # which asks for a model with rotations
    "DBMTL": {"beta": 0.0},
    "MoCo": {"normalise": False},
    "FairGrad": {"max_norm": 0.0},
    "FORUM": {"normalise": False},
    "SDMGrad": {"lr": 0.5},  # long steps amplify what rounding does
}


def method(name: str) -> dict[str, object]:
    """The config of an aggregator, with the same draws each time."""
    return {"type": name} | NEEDED.get(name, {}) | ({"seed": 3} if name in RANDOM else {})


# Not built, which would import TorchJD wherever this is: the method needed of it has a Gramian.
GRAMIAN_METHODS = [
    name
    for name in GRADIENT_METHODS
    if name == "TorchJD" or issubclass(AGGREGATORS[name], GramianAggregator)
]
# Not those that weigh what a task has alone, keep gradients, or are about parameters.
FEATURE_METHODS = [
    name
    for name in GRADIENT_METHODS
    if AGGREGATORS[name].of_features and not AGGREGATORS[name].scales_own
]


class Trunk(nn.Module):
    """Two layers that all tasks share, and heads: three alone, and one that two tasks share."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Linear(8, 2) for name in ("a", "b", "c", "d")})
        self.heads_ab = nn.Linear(8, 8)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.losses(self.trunk(x))

    def losses(self, z: Tensor) -> dict[str, Tensor]:
        both = torch.tanh(self.heads_ab(z))
        return {
            "a": self.heads["a"](both).square().mean(),
            "b": self.heads["b"](both).exp().mean(),
            "c": self.heads["c"](z).sin().mean(),
            "d": self.heads["d"](z.detach()).square().mean(),  # reaches nothing that is shared
        }


def mask_rcnn_config(narrow: bool = False) -> ConfigDict:
    """The small Mask R-CNN, made smaller still; ``narrow`` for tests that build and train many."""
    cfg = Config.fromfile(CONFIG).model
    cfg.roi_head.bbox_head.update(num_classes=3, fc_out_channels=32)
    cfg.roi_head.mask_head.update(num_classes=3, num_convs=1)
    cfg.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=20)
    cfg.train_cfg.rcnn.sampler.num = 16
    if narrow:
        norm = {"type": "GN", "num_groups": 8, "requires_grad": True}
        cfg.backbone.update(base_channels=16, norm_cfg=norm)
        cfg.neck.update(in_channels=[16, 32, 64, 128], out_channels=16, norm_cfg=norm)
        cfg.rpn_head.update(in_channels=16, feat_channels=16)
        for part in ("bbox", "mask"):
            cfg.roi_head[f"{part}_roi_extractor"].out_channels = 16
            cfg.roi_head[f"{part}_head"].in_channels = 16
        cfg.roi_head.mask_head.conv_out_channels = 16
    return cfg


def build_detector(cfg: ConfigDict) -> nn.Module:
    """Builds from a config, as the runner does."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(cfg)
        model.init_weights()
    return model


def detector_losses(model: nn.Module, seed: int = 0) -> Mapping[str, Tensor]:
    """The loss terms on two random images with two objects each."""
    from mmdet.testing import demo_mm_inputs

    batch = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_items=[2, 2], num_classes=3, with_mask=True)
    torch.manual_seed(seed)  # the samplers draw
    data = model.data_preprocessor(batch, True)
    _, terms = model.parse_losses(model(**data, mode="loss"))
    return {k: v for k, v in terms.items() if "loss" in k and k != "loss"}


def task_losses(model: nn.Module) -> dict[str, Tensor]:
    """The same, as the tasks ``detection`` and ``mask``."""
    return TaskGroups(DETECTION_MASK)(detector_losses(model))


def update_in_turn(
    loss_of: Callable[[str], Tensor],
    tasks: Sequence[str],
    optimizer: torch.optim.Optimizer,
    norm: TaskNorm | None = None,
) -> dict[str, float]:
    """One step of Sequential, with the norms of each task; the losses before each update."""
    backward = MultiTaskBackward(optimizer, "Sequential", tasks=tasks)

    def loss(task: str) -> Tensor:
        with nullcontext() if norm is None else norm.of(task):
            return loss_of(task)

    backward.take_in_turn(loss, optimizer.step)
    return dict(zip(backward.last.tasks, backward.last.losses.tolist(), strict=True))
