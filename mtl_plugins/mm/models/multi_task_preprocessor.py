"""Preprocessor that pads each label of dense prediction as unknown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mmengine.structures import PixelData
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_plugins.mm.structures import FIELDS, IGNORED


@MODELS.register_module()
class MultiTaskDataPreProcessor(SegDataPreProcessor):
    """Pad each label with the value that means unknown, such as 0 for depth and normals.

    Args:
        size: Size of all images of a training batch after padding (height, width).
        size_divisor: Divisor of that size instead; 1 without both.
        seg_pad_val: 255, the value for classes.
        batch_augments: None; augmentations of MMSegmentation's batches know ``gt_sem_seg`` alone.
        **kwargs: Other arguments of ``SegDataPreProcessor``.

    Raises:
        ValueError: ``batch_augments`` or another ``seg_pad_val``.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int] | None = None,
        size_divisor: int | None = None,
        seg_pad_val: float = IGNORED,
        batch_augments: Any = None,
        **kwargs: Any,
    ) -> None:
        key = "model.data_preprocessor"
        if batch_augments is not None:
            raise ValueError(f"{key}.batch_augments: would mix images but not all of their labels")
        if seg_pad_val != IGNORED:
            raise ValueError(f"{key}.seg_pad_val: unknown pixels are {IGNORED}, got {seg_pad_val}")
        if size is None and size_divisor is None:
            size_divisor = 1
        super().__init__(size=size, size_divisor=size_divisor, **kwargs)

    def forward(self, data: dict, training: bool = False) -> dict[str, Any]:
        """Return the batch, normalised and padded, on the device of the model.

        Raises:
            ValueError: A label has another size than its image.
        """
        data = self.cast_data(data)
        if not training:
            return super().forward(data, training)
        labels = []
        for image, sample in zip(data["inputs"], data["data_samples"], strict=True):
            fields = [field for field in FIELDS.values() if field.truth in sample]
            labels.append([(field, sample.get(field.truth).data) for field in fields])
            for field, label in labels[-1]:
                if label.shape[-2:] != image.shape[-2:]:
                    raise ValueError(
                        f"train_dataloader.dataset.pipeline: {field.truth} of "
                        f"{sample.metainfo.get('img_path')!r} is {_size(label)} pixels, the image "
                        f"{_size(image)} (height x width); transforms have to change both"
                    )
        data = super().forward(data, training)
        for sample, given in zip(data["data_samples"], labels, strict=True):
            sample.set_metainfo({"pad_shape": tuple(data["inputs"].shape[-2:])})
            for field, label in given:
                padded = F.pad(label, tuple(sample.padding_size), value=field.unknown)
                sample.set_data({field.truth: PixelData(data=padded)})
        return data


def check_preprocessor(preprocessor: nn.Module, fields: Iterable[str]) -> None:
    """Refuse MMSegmentation's own preprocessor, for labels that it does not pad as unknown."""
    others = [FIELDS[name].truth for name in fields if name != "sem_seg"]
    plain = isinstance(preprocessor, SegDataPreProcessor)
    if plain and others and not isinstance(preprocessor, MultiTaskDataPreProcessor):
        raise ValueError(
            f"model.data_preprocessor.type: {type(preprocessor).__name__} pads {', '.join(others)} "
            "not at all or by 255, such as a depth of 255 m; take MultiTaskDataPreProcessor"
        )


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape[-2:]))
