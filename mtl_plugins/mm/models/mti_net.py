"""MTI-Net's neck: predictions of all tasks at every scale, which then help one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmseg.models.backbones.resnet import BasicBlock
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation

from mtl_plugins.mm.models.segnet import BATCH_NORM
from mtl_plugins.mm.models.task_features import TaskFeatures

MASKS = ("tasks", "channels")
"""Values of ``mask``: the elements over which the masks of feature propagation sum to 1."""


def blocks(in_channels: int, out_channels: int, count: int, norm_cfg: dict[str, Any]) -> nn.Module:
    """Return residual blocks that keep the size; the first changes the number of channels."""
    shortcut = None
    if in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            build_norm_layer(norm_cfg, out_channels)[1],
        )
    layers = [BasicBlock(in_channels, out_channels, downsample=shortcut, norm_cfg=norm_cfg)]
    for _ in range(count - 1):
        layers.append(BasicBlock(out_channels, out_channels, norm_cfg=norm_cfg))
    return nn.Sequential(*layers)


class FeaturePropagation(nn.Module):
    """Carry the tasks' features of one scale to the next finer one.

    Args:
        tasks: Names of the tasks.
        channels: Number of channels of each task's features.
        mask: ``"tasks"`` or ``"channels"``, see :class:`MTINet`.
        norm_cfg: Config of the normalisations.
    """

    def __init__(
        self, tasks: Sequence[str], channels: int, mask: str, norm_cfg: dict[str, Any]
    ) -> None:
        super().__init__()
        self.over, self.count = mask, len(tasks)
        joint = self.count * channels
        # Small variants may have fewer channels than the published divisors.
        narrow = max(joint // 4, 1)
        self.scores = nn.Sequential(
            blocks(joint, narrow, 2, norm_cfg), nn.Conv2d(narrow, joint, kernel_size=1)
        )
        self.reduce = blocks(joint, channels, 1, norm_cfg)
        self.squeeze = nn.ModuleDict(
            {task: SqueezeExcitation(channels, max(channels // 16, 1)) for task in tasks}
        )

    def mask(self, joint: Tensor) -> Tensor:
        """Return a weight for each element of the tasks' concatenated features."""
        scores = self.scores(joint)
        if self.over == "tasks":
            return scores.unflatten(1, (self.count, -1)).softmax(1).flatten(1, 2)
        return scores.unflatten(1, (-1, self.count)).softmax(2).flatten(1, 2)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return features ``[N, C, H, W]`` for each task, of those of all tasks."""
        joint = torch.cat([features[task] for task in self.squeeze], 1)
        shared = self.reduce(self.mask(joint) * joint)
        return {task: gate(shared) + features[task] for task, gate in self.squeeze.items()}


class Attended(nn.Module):
    """Pass a map ``[N, C, H, W]`` on where a mask of its own says so.

    Args:
        channels: Number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.mask = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``conv(x) * sigmoid(mask(x))``."""
        return self.conv(x) * self.mask(x).sigmoid()


@MODELS.register_module()
class MTINet(BaseModule):
    """Neck of MTI-Net (https://arxiv.org/abs/2001.06902), for any backbone with several scales.

    From the coarsest scale to the finest, each task refines the backbone's map, with the features
    that the scale before propagated, and predicts; then each task takes from the others' features
    at the same scale (distillation). The head gets a task's distilled maps of all scales: for the
    published head, MMSegmentation's ``FCNHead`` with ``input_transform="resize_concat"``.
    The predictions are the auxiliary ones, which the published loss supervises at every scale.

    Args:
        in_channels: Number of channels of each of the backbone's maps, the finest first.
        tasks: Number of channels of the prediction of each task that has a head.
        auxiliary_tasks: Number of channels of the prediction of each task that only supervises
            and helps, and has no features in the output.
        mask: ``"tasks"`` weighs the features of propagation by a softmax over the tasks, as in the
            paper. ``"channels"`` is the code that its authors published
            (https://github.com/SimonVandenhende/Multi-Task-Learning-PyTorch): as many adjacent
            channels as there are tasks share a softmax, mostly those of one and the same task.
        norm_cfg: Config of the normalisations.
        init_cfg: Config of the initialisation; PyTorch's unless given.

    Raises:
        ValueError: There is no task, a task is in both ``tasks`` and ``auxiliary_tasks``, or
            ``mask`` is none of the two.
    """

    features_by_task = True
    """No output is every task's, so that the tasks' common representation lies before."""

    def __init__(
        self,
        in_channels: Sequence[int],
        tasks: Mapping[str, int],
        auxiliary_tasks: Mapping[str, int] | None = None,
        mask: Literal["tasks", "channels"] = "tasks",
        norm_cfg: dict[str, Any] = BATCH_NORM,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        auxiliary_tasks = auxiliary_tasks or {}
        if not tasks:
            raise ValueError("model.neck.tasks: expected the channels of each task, got none")
        if both := sorted(set(tasks) & set(auxiliary_tasks)):
            raise ValueError(
                f"model.neck.auxiliary_tasks: expected tasks that are not in model.neck.tasks, "
                f"which have such predictions as well, got {both}"
            )
        if mask not in MASKS:
            raise ValueError(f"model.neck.mask: expected one of {MASKS}, got {mask!r}")
        outputs = {**tasks, **auxiliary_tasks}
        self.in_channels = list(in_channels)
        propagated = [*self.in_channels[1:], 0]
        self.refinements = nn.ModuleList(
            nn.ModuleDict({task: blocks(c + more, c, 2, norm_cfg) for task in outputs})
            for c, more in zip(self.in_channels, propagated, strict=True)
        )
        self.predictions = nn.ModuleList(
            nn.ModuleDict({task: nn.Conv2d(c, out, 1) for task, out in outputs.items()})
            for c in self.in_channels
        )
        self.propagations = nn.ModuleList(
            FeaturePropagation(list(outputs), c, mask, norm_cfg) for c in self.in_channels[1:]
        )
        self.distillations = nn.ModuleList(
            nn.ModuleDict(
                {
                    task: nn.ModuleDict({other: Attended(c) for other in outputs if other != task})
                    for task in tasks
                }
            )
            for c in self.in_channels
        )

    def forward(self, inputs: Sequence[Tensor]) -> TaskFeatures:
        """Return the distilled maps and the predictions of all scales, the finest first.

        Args:
            inputs: Maps ``[N, in_channels[l], H_l, W_l]`` of the backbone.

        Raises:
            ValueError: There are more or fewer maps than ``in_channels``.
        """
        if len(inputs) != len(self.in_channels):
            raise ValueError(
                f"model.neck.in_channels: expected one number for each of the {len(inputs)} maps "
                f"of the backbone, got {self.in_channels}"
            )
        # nn.ModuleList has no type for its elements.
        refinements: Any = self.refinements
        distillations: Any = self.distillations
        predictions: Any = self.predictions
        scales: list[dict[str, Tensor]] = []  # each task's features, the finest scale first
        for scale in reversed(range(len(inputs))):
            x = inputs[scale]
            parts = {task: [x] for task in refinements[scale]}
            if scales:
                for task, coarse in self.propagations[scale](scales[0]).items():
                    parts[task].append(F.interpolate(coarse, size=x.shape[-2:], mode="bilinear"))
            refined = {
                task: refine(torch.cat(parts[task], 1))
                for task, refine in refinements[scale].items()
            }
            scales.insert(0, refined)
        distilled = [
            {
                task: features[task] + sum(take(features[other]) for other, take in takes.items())
                for task, takes in distillation.items()
            }
            for features, distillation in zip(scales, distillations, strict=True)
        ]
        predicted = [
            {task: predict(features[task]) for task, predict in layers.items()}
            for features, layers in zip(scales, predictions, strict=True)
        ]
        return TaskFeatures(_by_task(distilled), _by_task(predicted))


def _by_task(scales: Sequence[Mapping[str, Tensor]]) -> dict[str, tuple[Tensor, ...]]:
    """Return the maps of all scales for each task."""
    return {task: tuple(maps[task] for maps in scales) for task in scales[0]}
