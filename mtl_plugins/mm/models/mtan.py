"""Multi-Task Attention Network on SegNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_plugins.mm.models.segnet import (
    BATCH_NORM,
    SegNet,
    check_tasks,
    conv_norm,
    pool,
    unpool,
)
from mtl_plugins.mm.models.task_features import TaskFeatures


@MODELS.register_module()
class MTANSegNet(SegNet):
    """SegNet with an attention of each task on every stage (https://arxiv.org/abs/1803.10704).

    A task's attention masks the last map of each stage of the shared SegNet by what the stage's
    first map and the task's own map of the stage before say. In the code that the paper's authors
    published (https://github.com/lorenmt/mtan), the convolutions of 3 x 3 between the masks belong
    to all tasks, although the paper draws them in the tasks' own part; their normalisations hence
    see one batch a task.

    Args:
        tasks: Names of the tasks.
        shared_attention: Whether the convolutions between the masks belong to all tasks, as
            published, or to each task.
        in_channels: Number of channels of the image.
        channels: Number of channels of each stage of the encoder. The decoder mirrors them.
        convs: Number of convolutions of each stage of the shared network.
        norm_cfg: Config of the normalisations.
        init_cfg: Config of the initialisation; Xavier's normal rule unless given.

    Attributes:
        only_task: Name of the one task to compute; None for all.

    Raises:
        ValueError: ``tasks`` is empty or names a task twice, or ``channels`` and ``convs`` differ
            in length.
    """

    only_task: str | None = None

    def __init__(
        self,
        tasks: Sequence[str],
        shared_attention: bool = True,
        in_channels: int = 3,
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        convs: Sequence[int] = (2, 2, 3, 3, 3),
        norm_cfg: dict[str, Any] = BATCH_NORM,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        tasks = check_tasks(tasks, "model.backbone.tasks")
        super().__init__(in_channels, channels, convs, norm_cfg, init_cfg)
        # The task that has the blocks, for each task.
        self.owners = {task: "shared" if shared_attention else task for task in tasks}

        def mask(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                conv_norm(inputs, outputs, 1, norm_cfg),
                conv_norm(outputs, outputs, 1, norm_cfg, nn.Sigmoid()),
            )

        def block(inputs: int, outputs: int) -> nn.Sequential:
            return conv_norm(inputs, outputs, 3, norm_cfg)

        before, after = [channels[0], *channels[:-1]], [*channels[1:], channels[-1]]
        from_encoder = [channels[0], *(2 * count for count in channels[1:])]
        from_decoder = [sum(pair) for pair in zip(channels, before, strict=True)]
        self.encoder_masks = nn.ModuleDict(
            {task: nn.ModuleList(map(mask, from_encoder, channels)) for task in tasks}
        )
        self.decoder_masks = nn.ModuleDict(
            {task: nn.ModuleList(map(mask, from_decoder[::-1], before[::-1])) for task in tasks}
        )
        owners = dict.fromkeys(self.owners.values())
        self.encoder_blocks = nn.ModuleDict(
            {owner: nn.ModuleList(map(block, channels, after)) for owner in owners}
        )
        self.decoder_blocks = nn.ModuleDict(
            {owner: nn.ModuleList(map(block, channels[::-1], before[::-1])) for owner in owners}
        )

    def forward(self, x: Tensor) -> TaskFeatures:
        """Return a map ``[N, channels[0], H, W]`` for each task, of images ``[N, C, H, W]``."""
        self.check_size(x)
        encoded, pools = [], []
        stage: Any  # nn.ModuleList has no type for its elements
        for stage in self.encoder:
            first = stage[0](x)
            last = stage[1:](first)
            encoded.append((first, last))
            x, indices = pool(last)
            pools.append((indices, last))
        decoded = []
        for stage, (indices, full) in zip(self.decoder, reversed(pools), strict=True):
            first = unpool(x, indices, full)
            x = stage(first)
            decoded.append((first, x))
        tasks = [task for task in self.owners if self.only_task in (None, task)]
        return TaskFeatures({task: (self._attend(task, encoded, decoded),) for task in tasks})

    def _attend(
        self,
        task: str,
        encoded: list[tuple[Tensor, Tensor]],
        decoded: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Return the task's last map, of the first and last map of every shared stage."""
        owner = self.owners[task]
        masks: Any = self.encoder_masks[task]  # nn.ModuleDict has no type for its values
        blocks: Any = self.encoder_blocks[owner]
        own: list[Tensor] = []  # the task's map of the stage before
        for (first, last), mask, block in zip(encoded, masks, blocks, strict=True):
            own = [F.max_pool2d(block(mask(torch.cat([first, *own], 1)) * last), 2)]
        (x,) = own
        masks, blocks = self.decoder_masks[task], self.decoder_blocks[owner]
        for (first, last), mask, block in zip(decoded, masks, blocks, strict=True):
            size = first.shape[-2:]
            x = block(F.interpolate(x, size=size, mode="bilinear", align_corners=True))
            x = mask(torch.cat([first, x], 1)) * last
        return x
