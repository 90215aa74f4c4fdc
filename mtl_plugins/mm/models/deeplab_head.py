"""DeepLab's head with the last layers of torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmengine.dist import get_world_size
from mmseg.models.decode_heads import ASPPHead
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mtl_plugins.mm.models.segnet import BATCH_NORM


class ImagePooling(nn.Sequential):
    """Branch of global pooling, whose batch norm has no variance to learn from in a single image.

    A task has one image of a batch now and then with STA and ISTA, or with partial labels. The
    running statistics then normalise, as in the test.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, C, 1, 1]`` of features ``[N, C_in, H, W]``."""
        norm = getattr(self[1], "norm", None)
        shared = isinstance(norm, nn.SyncBatchNorm) and get_world_size() > 1
        if len(x) > 1 or shared or not (isinstance(norm, _BatchNorm) and norm.training):
            return super().forward(x)
        norm.eval()
        try:
            return super().forward(x)
        finally:
            norm.train()


@MODELS.register_module()
class DeepLabHead(ASPPHead):
    """Head of DeepLab v3 (https://arxiv.org/abs/1706.05587) as torchvision has it.

    Multi-task dense prediction on ResNet-50 uses this head
    (https://github.com/SimonVandenhende/Multi-Task-Learning-PyTorch), after a ResNet whose last two
    stages are dilated. MMSegmentation's ``ASPPHead`` joins the branches by a convolution of 3 x 3;
    torchvision's head by one of 1 x 1 and dropout, with a convolution of 3 x 3 after it.

    Args:
        in_channels: Number of channels of the feature map.
        channels: Number of channels of each branch and of the map before the prediction.
        dilations: Dilation of each branch; 1 stands for a convolution of 1 x 1.
        branch_dropout: Probability that an element of the joined branches is dropped.
        dropout_ratio: Probability that a channel is dropped before the prediction.
        norm_cfg: Config of the normalisations.
        **kwargs: Other arguments of MMSegmentation's ``BaseDecodeHead``.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 256,
        dilations: Sequence[int] = (1, 12, 24, 36),
        branch_dropout: float = 0.5,
        dropout_ratio: float = 0.0,
        norm_cfg: dict[str, Any] = BATCH_NORM,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            dilations=dilations,
            in_channels=in_channels,
            channels=channels,
            dropout_ratio=dropout_ratio,
            norm_cfg=norm_cfg,
            **kwargs,
        )
        self.image_pool: nn.Sequential = ImagePooling(*self.image_pool)
        layer = {"conv_cfg": self.conv_cfg, "norm_cfg": self.norm_cfg, "act_cfg": self.act_cfg}
        self.bottleneck = nn.Sequential(
            ConvModule((len(dilations) + 1) * channels, channels, 1, **layer),
            nn.Dropout(branch_dropout),
            ConvModule(channels, channels, 3, padding=1, **layer),
        )
