"""SegNet, an encoder and decoder that remembers where each maximum was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

BATCH_NORM = {"type": "BN", "requires_grad": True}
"""MMSegmentation's config of an ordinary ``nn.BatchNorm2d``."""


def check_tasks(tasks: Sequence[str], key: str) -> list[str]:
    """Return the names of the tasks as a list.

    Args:
        tasks: Names of the tasks.
        key: Key of the config that holds ``tasks``, for the error.

    Raises:
        ValueError: ``tasks`` is empty, a single string, or names a task twice.
    """
    if isinstance(tasks, str) or not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"{key}: expected a list of distinct task names, got {tasks!r}")
    return list(tasks)


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    norm_cfg: dict[str, Any],
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """Return a convolution with bias, a normalisation and an activation, a ReLU unless given."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
        build_norm_layer(norm_cfg, out_channels)[1],
        activation or nn.ReLU(inplace=True),
    )


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maxima of ``[N, C, H, W]`` in squares of two, and their indices."""
    return F.max_pool2d(x, 2, return_indices=True)  # type: ignore[return-value]


def unpool(x: Tensor, indices: Tensor, like: Tensor) -> Tensor:
    """Put the values of ``x`` where the maxima of ``like`` were, and 0 elsewhere."""
    # The size must be told: an odd height or width is not twice the pooled one.
    return F.max_unpool2d(x, indices, [2, 2], output_size=list(like.shape[-2:]))


@MODELS.register_module()
class SegNet(BaseModule):
    """SegNet (https://arxiv.org/abs/1511.00561) as multi-task learning uses it.

    The form is that of https://github.com/lorenmt/mtan, which Nash-MTL, CAGrad, FAMO and Recon have
    taken over: convolutions of 3 x 3 with bias, each with a normalisation and a ReLU, 26 in all,
    drawn by Xavier's normal rule. The published decoder ends in ``channels[0]`` maps of the image's
    size, and each task has a convolution of 3 x 3 and one of 1 x 1 on top, which is
    MMSegmentation's ``FCNHead(in_channels=64, channels=64, num_convs=1, concat_input=False,
    norm_cfg=None, act_cfg=None, dropout_ratio=0)``. An image may have any size from
    ``2 ** len(channels)`` pixels on.

    Args:
        in_channels: Number of channels of the image.
        channels: Number of channels of each stage of the encoder. The decoder mirrors them.
        convs: Number of convolutions of each stage.
        norm_cfg: Config of the normalisations.
        init_cfg: Config of the initialisation; Xavier's normal rule unless given.

    Raises:
        ValueError: ``channels`` and ``convs`` differ in length.
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        convs: Sequence[int] = (2, 2, 3, 3, 3),
        norm_cfg: dict[str, Any] = BATCH_NORM,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        if len(channels) != len(convs):
            raise ValueError(
                f"model.backbone.convs: expected one number for each of the {len(channels)} stages "
                f"in channels, got {list(convs)}"
            )
        super().__init__(
            init_cfg or {"type": "Xavier", "layer": "Conv2d", "distribution": "normal"}
        )

        def stage(first: int, others: int, count: int) -> nn.Sequential:
            inputs = [first, *[others] * (count - 1)]
            return nn.Sequential(*(conv_norm(c, others, 3, norm_cfg) for c in inputs))

        ins, outs = [in_channels, *channels[:-1]], [channels[0], *channels[:-1]]
        self.encoder = nn.ModuleList(map(stage, ins, channels, convs))
        self.decoder = nn.ModuleList(map(stage, channels[::-1], outs[::-1], convs[::-1]))

    def check_size(self, image: Tensor) -> None:
        """Check that the images ``[N, C, H, W]`` can be halved by every stage.

        Raises:
            ValueError: The images are too small.
        """
        least = 2 ** len(self.encoder)
        height, width = image.shape[-2:]
        if min(height, width) < least:
            raise ValueError(
                f"model.backbone: {type(self).__name__} halves the image {len(self.encoder)} "
                f"times: expected at least {least}x{least} pixels, got {height}x{width}"
            )

    def forward(self, x: Tensor) -> Any:
        """Return a tuple with one map ``[N, channels[0], H, W]`` of images ``[N, C, H, W]``."""
        self.check_size(x)
        pools = []
        for stage in self.encoder:
            full = stage(x)
            x, indices = pool(full)
            pools.append((indices, full))
        for stage, (indices, full) in zip(self.decoder, reversed(pools), strict=True):
            x = stage(unpool(x, indices, full))
        return (x,)
