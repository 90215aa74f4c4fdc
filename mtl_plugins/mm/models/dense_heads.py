"""Heads of dense prediction around any decode head of MMSegmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModule
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import accuracy
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

from mtl_plugins.mm.structures import FIELDS, IGNORED, DenseField

Config = Mapping[str, Any]


class DenseHead(BaseModule):
    """Decoder of a task, with the task's label, loss and prediction.

    Args:
        decoder: Config of any decode head of MMSegmentation, used for its forward alone; without
            ``num_classes``, which this head sets. None for a task that has only the auxiliary
            predictions of backbone or neck.
        loss: Config of the loss of logits and labels ``(pred, target)``, at the labels'
            resolution; None for the default of the task.
        loss_weight: Factor of the loss, besides that of ``loss``.
        align_corners: Way to resize predictions; by default the decoder's, and False without one.
        init_cfg: Config of the initial weights, as for any MMEngine module.

    Attributes:
        field: Name of the label in :data:`~mtl_plugins.mm.structures.FIELDS`.
        out_channels: Number of channels of the logits.

    Raises:
        ValueError: The decoder has another number of channels, or settings of losses or classes,
            which this head does not use; or the loss has a name by which MMEngine would not train.
    """

    field: ClassVar[str]
    default_loss: ClassVar[Config]
    out_channels: int = 1

    def __init__(
        self,
        decoder: Config | None = None,
        loss: Config | None = None,
        loss_weight: float = 1.0,
        align_corners: bool | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        self.decoder = None if decoder is None else self._build_decoder(decoder)
        if align_corners is None:
            align_corners = getattr(self.decoder, "align_corners", False)
        self.align_corners = align_corners
        self.loss_module = MODELS.build(dict(loss or self.default_loss))
        check_loss_name("loss.loss_name", self.loss_name)
        self.loss_weight = loss_weight

    def _build_decoder(self, cfg: Config) -> BaseDecodeHead:
        for name in ("loss_decode", "sampler", "ignore_index", "threshold"):
            if cfg.get(name) is not None and (name, cfg[name]) != ("ignore_index", IGNORED):
                raise ValueError(
                    f"decoder.{name}: {type(self).__name__} does not use it; the loss is 'loss' "
                    f"beside 'decoder', unknown pixels are {self.label.unknown:g}"
                )
        for name in ("num_classes", "out_channels"):
            if cfg.get(name, self.out_channels) != self.out_channels:
                raise ValueError(
                    f"decoder.{name}: {type(self).__name__} needs {self.out_channels} channels, "
                    f"got {cfg[name]}; leave it out"
                )
        channels: dict[str, Any] = {
            "num_classes": self.out_channels,
            "out_channels": self.out_channels,
        }
        if self.out_channels == 1:
            channels["threshold"] = 0.5  # not used, and a warning without
        decoder = MODELS.build({**channels, **cfg})
        if not isinstance(decoder, BaseDecodeHead) or isinstance(decoder, BaseCascadeDecodeHead):
            raise ValueError(
                f"decoder.type: {type(decoder).__name__} is no decode head of MMSegmentation that "
                "takes the features alone; FCNHead, ASPPHead or FPNHead is one"
            )
        # The data set's classes are those of gt_sem_seg; the other fields count for themselves.
        decoder.class_agnostic = self.field != "sem_seg"
        return decoder

    @property
    def label(self) -> DenseField:
        """Return the names of label and prediction."""
        return FIELDS[self.field]

    @property
    def loss_name(self) -> str:
        """Return the name of the loss in the head's losses."""
        return getattr(self.loss_module, "loss_name", f"loss_{self.field}")

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the logits ``[N, C, h, w]`` of features, each ``[N, C_l, H_l, W_l]``.

        Raises:
            TypeError: The decoder returns something else.
        """
        assert self.decoder is not None  # the segmentor looks
        logits = self.decoder(inputs)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"decoder.type: {type(self.decoder).__name__} returns a {type(logits).__name__}, "
                f"and {type(self).__name__} needs one tensor, such as FCNHead returns"
            )
        return logits

    def loss(self, inputs: Sequence[Tensor], samples: Sequence[Any], train_cfg: Any) -> dict:
        """Return the losses of features by name, as a decode head of MMSegmentation does."""
        return self.loss_by_feat(self(inputs), samples)

    def loss_by_feat(self, logits: Tensor, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Return the losses of logits by name.

        Args:
            logits: Predictions of any resolution, ``[N, C, h, w]``.
            samples: ``N`` samples with the label.

        Raises:
            ValueError: Another number of channels than the head's.
        """
        if logits.shape[1] != self.out_channels:
            raise ValueError(
                f"{type(self).__name__} needs predictions of {self.out_channels} channels, got "
                f"{logits.shape[1]}"
            )
        labels = torch.stack([sample.get(self.label.truth).data for sample in samples])
        logits = self._resized(logits, labels.shape[2:])
        known = (labels != self.label.unknown).flatten(1).any(1)
        if self.label.kind != "classes" and not known.any():
            # Losses of MMSegmentation fail without a pixel, or have a gradient that is NaN.
            return {self.loss_name: 0 * logits.float().sum()}
        if self.label.kind in ("depth", "normals") and not known.all():
            logits, labels = logits[known], labels[known]
        return self._losses(logits, labels)

    def _losses(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {self.loss_name: self.loss_weight * self.loss_module(logits, labels)}

    def predict(self, inputs: Sequence[Tensor], metas: Sequence[Config], test_cfg: Any) -> Tensor:
        """Return the logits ``[N, C, H, W]`` at the size of the images in the batch."""
        # MMSegmentation's own head knows the size.
        return BaseDecodeHead.predict_by_feat(self, self(inputs), metas)

    def finish(self, logits: Tensor) -> Tensor:
        """Return the prediction of one image from resized logits ``[C, H, W]``."""
        return logits

    def _resized(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        how = {"mode": "bilinear", "align_corners": self.align_corners}
        return resize(logits, size=tuple(size), warning=False, **how)


def check_loss_name(key: str, *names: str) -> None:
    """Refuse names of losses by which MMEngine logs a loss, but does not train it.

    Args:
        key: Config key of the names.
        *names: Names of a head's losses.

    Raises:
        ValueError: No name contains ``loss``.
    """
    if not any("loss" in name for name in names):
        raise ValueError(
            f"{key}: MMEngine trains only losses with 'loss' in their name, got "
            f"{', '.join(map(repr, names))}; such as {f'loss_{names[0]}'!r}"
        )


@MODELS.register_module()
class DepthHead(DenseHead):
    """Head for depth, in the unit of the labels."""

    field = "depth"
    default_loss = {"type": "DepthL1Loss"}


@MODELS.register_module()
class NormalHead(DenseHead):
    """Head for surface normals; predictions have unit length at their final resolution."""

    field = "normals"
    default_loss = {"type": "NormalLoss"}
    out_channels = 3

    def finish(self, logits: Tensor) -> Tensor:
        """Return unit vectors of vectors ``[3, H, W]``."""
        return F.normalize(logits.float(), dim=0)


class _BinaryHead(DenseHead):
    def _losses(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        loss = self.loss_module(logits, labels.squeeze(1).long(), ignore_index=IGNORED)
        return {self.loss_name: self.loss_weight * loss}

    def finish(self, logits: Tensor) -> Tensor:
        """Return probabilities of logits ``[1, H, W]``."""
        return logits.sigmoid()


@MODELS.register_module()
class EdgeHead(_BinaryHead):
    """Head for edges; predictions are probabilities."""

    field = "edges"
    default_loss = {"type": "BalancedBCELoss", "pos_weight": 0.95}


@MODELS.register_module()
class SaliencyHead(_BinaryHead):
    """Head for saliency; predictions are probabilities."""

    field = "saliency"
    default_loss = {"type": "BalancedBCELoss", "pos_weight": "batch"}


class _ClassHead(DenseHead):
    default_loss = {"type": "CrossEntropyLoss", "avg_non_ignore": True}

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
            raise ValueError(f"num_classes: expected an integer of 2 or more, got {num_classes!r}")
        self.out_channels = num_classes
        super().__init__(**kwargs)

    def _losses(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        labels = labels.squeeze(1).long()
        loss = self.loss_module(logits, labels, ignore_index=IGNORED)
        share = accuracy(logits, labels, ignore_index=IGNORED)
        return {self.loss_name: self.loss_weight * loss, "acc_seg": share}

    def finish(self, logits: Tensor) -> Tensor:
        """Return the class of each pixel, ``[1, H, W]``."""
        return logits.argmax(0, keepdim=True)


@MODELS.register_module()
class SegmentationHead(_ClassHead):
    """Head for semantic segmentation.

    Args:
        num_classes: Number of classes.
        **kwargs: Arguments of :class:`DenseHead`; the default loss is the cross entropy's mean over
            the labelled pixels.
    """

    field = "sem_seg"


@MODELS.register_module()
class PartsHead(_ClassHead):
    """Head for human parts, background among them.

    Args:
        num_classes: Number of classes.
        **kwargs: Arguments of :class:`DenseHead`; the default loss is the cross entropy's mean over
            the labelled pixels.
    """

    field = "human_parts"
