"""Preprocessing of images with a depth channel, and two ResNets that meet at every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmdet.models.backbones import ResNet
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.model import BaseModule, ModuleList
from torch import Tensor


@MODELS.register_module()
class RGBDDataPreprocessor(DetDataPreprocessor):
    """Normalise images of four channels, and pad the visible masks beside the amodal ones.

    Args:
        mean: Mean of each channel (0 to 255), in the order that the network sees: red, green, blue
            and depth with ``bgr_to_rgb``, else blue first.
        std: Standard deviation of each channel, in the order of ``mean``.
        bgr_to_rgb: Whether the images are BGR and depth, and the network shall see RGB and depth.
        **kwargs: Other arguments of ``DetDataPreprocessor``.

    Raises:
        ValueError: ``mean`` or ``std`` does not have four values.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        bgr_to_rgb: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.order = [2, 1, 0, 3] if bgr_to_rgb else [0, 1, 2, 3]
        for key, values in (("mean", mean), ("std", std)):
            if len(values) != 4:
                raise ValueError(
                    f"model.data_preprocessor.{key}: expected four values, of red, green, blue and "
                    f"depth, got {list(values)}"
                )
            # Reordered, since MMEngine normalises before the channels are swapped.
            channels = torch.tensor(values)[self.order].view(-1, 1, 1)
            self.register_buffer(key, channels, persistent=False)
        self._enable_normalize = True

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Preprocess images ``[4, H, W]`` as ``DetDataPreprocessor`` does.

        Raises:
            ValueError: An image has no depth.
        """
        for image in data["inputs"]:
            if len(image) != 4:
                raise ValueError(
                    f"pipeline: an image has {len(image)} channels, not 4: LoadDepth is missing, "
                    "or a transform of colours comes after it"
                )
        data = super().forward(data, training)
        return {**data, "inputs": data["inputs"][:, self.order]}

    def pad_gt_masks(self, batch_data_samples: Sequence[DetDataSample]) -> None:
        """Pad ``masks`` and ``visible_masks`` at the right and at the bottom."""
        super().pad_gt_masks(batch_data_samples)
        for sample in batch_data_samples:
            objects = sample.gt_instances
            if "visible_masks" in objects:
                objects.visible_masks = objects.visible_masks.pad(
                    sample.batch_input_shape, pad_val=self.mask_pad_value
                )


@MODELS.register_module()
class RGBDResNet(BaseModule):
    """Two ResNets, for colour and for depth, fused at every stage (paper C, section 3).

    The outputs of a stage are concatenated and joined by a convolution with a norm. The ResNet for
    depth sees the depth three times, as a grey image, so that both can start from the same weights.

    Args:
        fusion_norm_cfg: Norm of the fused features; by default batch norm.
        depth_frozen_stages: ``frozen_stages`` of the ResNet for depth. By default every stage
            trains, as in UOAIS (``adet/modeling/backbone/resnet_depth.py``).
        depth_cfg: Arguments of the ResNet for depth alone, such as ``dict(init_cfg=None)`` if only
            the ResNet for colour is pretrained; frozen norms then need
            ``zero_init_residual=False``.
        **kwargs: Arguments of MMDetection's ``ResNet``, for both: with ``init_cfg=dict(
            type='Pretrained', ...)`` both are pretrained.
    """

    def __init__(
        self,
        fusion_norm_cfg: Mapping[str, Any] | None = None,
        depth_frozen_stages: int = -1,
        depth_cfg: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.rgb = ResNet(**kwargs)
        own = {"frozen_stages": depth_frozen_stages, **(depth_cfg or {})}
        self.depth = ResNet(**{**kwargs, **own})
        norm_cfg = {"type": "BN"} if fusion_norm_cfg is None else dict(fusion_norm_cfg)
        widths = [
            self.rgb.base_channels * 2**stage * self.rgb.block.expansion
            for stage in self.rgb.out_indices
        ]
        self.fusions = ModuleList(
            ConvModule(2 * width, width, 1, norm_cfg=norm_cfg, act_cfg=None) for width in widths
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return fused features by stage, ``[N, C_l, H_l, W_l]``, of images ``[N, 4, H, W]``."""
        colour, depth = self.rgb(x[:, :3]), self.depth(x[:, 3:].expand(-1, 3, -1, -1))
        stages = zip(self.fusions, colour, depth, strict=True)
        return tuple(fuse(torch.cat([c, d], dim=1)) for fuse, c, d in stages)
