"""Prediction of maps over whole images: windows that slide, and the size of the image's file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mmseg.models.utils import resize
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_plugins.mm.models.task_heads import field_of
from mtl_plugins.registry import suggest

Config = Mapping[str, Any]
Maps = dict[str, Tensor]
MODES = ("whole", "slide")
FLIPS = {"horizontal": (2,), "vertical": (1,), "diagonal": (1, 2)}
"""Axes of a map ``[C, H, W]`` that each flip of MMCV reverses."""


def check_test_cfg(test_cfg: Config) -> None:
    """Refuse an unknown mode, and windows without a size."""
    mode = test_cfg.get("mode", "whole")
    if mode not in MODES:
        raise ValueError(f"model.test_cfg.mode: there is no {mode!r}; {suggest(str(mode), MODES)}")
    for name in ("crop_size", "stride") if mode == "slide" else ():
        if not _is_pair(test_cfg.get(name)):
            raise ValueError(
                f"model.test_cfg.{name}: mode='slide' needs (height, width) in pixels, got "
                f"{test_cfg.get(name)!r}"
            )


def _is_pair(value: Any) -> bool:
    return isinstance(value, Iterable) and [type(v) for v in value] == [int, int]


def slide(
    predict: Callable[[Tensor, list[dict]], Maps],
    inputs: Tensor,
    metas: list[dict],
    test_cfg: Config,
) -> Maps:
    """Return the mean logits of each task over windows, as ``EncoderDecoder`` slides them.

    Args:
        predict: Function that returns the logits ``[N, C, H, W]`` of each task for a window.
        inputs: Images, ``[N, C, H, W]``.
        metas: Metainfo of the ``N`` images, which ``predict`` gets.
        test_cfg: ``crop_size`` and ``stride`` of the windows (height, width), in pixels.
    """
    height, width = inputs.shape[2:]
    count = inputs.new_zeros((len(inputs), 1, height, width))
    total: Maps = {}
    windows = zip((height, width), test_cfg["crop_size"], test_cfg["stride"], strict=True)
    rows, columns = (_windows(*axis) for axis in windows)
    for top, bottom in rows:
        for left, right in columns:
            crop = inputs[:, :, top:bottom, left:right]
            metas[0]["img_shape"] = crop.shape[2:]
            pad = (left, width - right, top, height - bottom)
            for task, logits in predict(crop, metas).items():
                total[task] = total.get(task, 0) + F.pad(logits, pad)
            count[:, :, top:bottom, left:right] += 1
    return {task: logits / count for task, logits in total.items()}


def _windows(length: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """Return begin and end of the windows along an axis, the last one moved inside."""
    ends = [
        min(i * stride + crop, length)
        for i in range(max(length - crop + stride - 1, 0) // stride + 1)
    ]
    return [(max(end - crop, 0), end) for end in ends]


def original(logits: Tensor, meta: Config, head: nn.Module) -> Tensor:
    """Return logits ``[C, H, W]`` without padding and flip, at the size of the image's file."""
    # By the preprocessor, and by the pipeline.
    given = (meta.get(key, [0] * 4) for key in ("img_padding_size", "padding_size"))
    left, right, top, bottom = map(sum, zip(*given, strict=True))
    height, width = logits.shape[-2:]
    logits = logits[:, top : height - bottom, left : width - right]
    if meta.get("flip"):
        direction = meta.get("flip_direction")
        if direction not in FLIPS:
            raise ValueError(
                f"flip_direction of a test image: {direction!r}; {suggest(str(direction), FLIPS)}"
            )
        logits = logits.flip(FLIPS[direction])
        if field_of(head) == "normals":
            turned = [
                -1.0 if 2 in FLIPS[direction] else 1.0,
                -1.0 if 1 in FLIPS[direction] else 1.0,
                1.0,
            ]
            logits = logits * logits.new_tensor(turned)[:, None, None]
    how = {"mode": "bilinear", "align_corners": head.align_corners}
    return resize(logits[None], size=meta["ori_shape"][:2], warning=False, **how)[0]
