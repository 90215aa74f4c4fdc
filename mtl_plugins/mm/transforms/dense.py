"""Transforms that load and pack the labels of dense prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform, to_tensor
from mmengine.structures import PixelData
from mmseg.registry import TRANSFORMS
from mmseg.structures import SegDataSample

from mtl_plugins.mm.structures import FIELDS
from mtl_plugins.mm.transforms.dense_files import READERS

Results = dict[str, Any]


@TRANSFORMS.register_module()
class LoadMultiTask(BaseTransform):
    """Load an image of a ``DenseDataset`` and all of its labels.

    Labels have the conventions of ``mtl_plugins.mm.structures.FIELDS``, whatever the files hold:
    255 where a class is unknown, 0 where depth is, zero vectors where normals are. A depth that is
    not finite is unknown. Normals are scaled to unit length, see
    ``mtl_plugins.mm.transforms.dense_files.NORMAL_TOLERANCE``. An image without a label, such as
    one without persons for their parts, has no such key. The orientation that a camera wrote into a
    JPEG is obeyed only for an image without labels, since label files have the pixels as stored.

    Args:
        image: Whether to load the image; False to load labels after the image was resized, as
            for a test at the labels' size.
        labels: Whether to load the labels.

    Examples:
        >>> # In a config
        >>> train_pipeline = [
        ...     dict(type='LoadMultiTask'), dict(type='MTRandomScaleCrop'),
        ...     dict(type='MTRandomFlip', prob=0.5), dict(type='PackMultiTaskInputs')]
        >>> test_pipeline = [
        ...     dict(type='LoadMultiTask', labels=False), dict(type='MTResize', scale=(640, 480)),
        ...     dict(type='LoadMultiTask', image=False), dict(type='PackMultiTaskInputs')]
    """

    def __init__(self, image: bool = True, labels: bool = True) -> None:
        self.image = image
        self.labels = labels

    def transform(self, results: Results) -> Results:
        """Add ``img`` (``[H, W, 3]``, blue, green, red) and the labels.

        Raises:
            ValueError: A file is malformed; the message names the file and the field.
        """
        if self.image:
            file = {"path": results["img_path"], "read": "image"}
            image = read_file("img", {**file, "stored": bool(results.get("label_files"))})
            assert image is not None
            results["img"] = image
            results["img_shape"] = results["ori_shape"] = image.shape[:2]
            results["img_dtype"] = image.dtype
        if self.labels:
            resized = tuple(results["img_shape"][:2]) != tuple(results["ori_shape"][:2])
            results["labels_as_stored"] = resized
        for name, file in results.get("label_files", {}).items() if self.labels else ():
            label = read_file(name, file)
            if label is None:
                continue
            if label.shape[:2] != tuple(results["ori_shape"]):
                raise ValueError(
                    f"{file['path']}: {name} has the size {_size(label.shape)}, its image "
                    f"{results['img_path']} {_size(results['ori_shape'])}"
                )
            if name == "sem_seg" and results.get("label_map"):
                table = np.arange(256, dtype=np.uint8)
                for old, new in results["label_map"].items():
                    table[old] = new
                label = table[label]
            results[FIELDS[name].result] = label
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(image={self.image}, labels={self.labels})"


@TRANSFORMS.register_module()
class PackMultiTaskInputs(BaseTransform):
    """Pack an image and its labels as ``inputs`` and a ``SegDataSample``.

    Classes are int64 ``[1, H, W]``, edges and saliency uint8 ``[1, H, W]``, depth float32
    ``[1, H, W]`` and normals float32 ``[3, H, W]``. Unlike ``PackSegInputs``, normals, parts and
    saliency are packed too.

    Args:
        meta_keys: Keys of ``metainfo``, as for ``PackSegInputs``.
    """

    def __init__(
        self,
        meta_keys: Sequence[str] = (
            *("img_path", "seg_map_path", "ori_shape", "img_shape", "pad_shape", "scale_factor"),
            *("flip", "flip_direction", "reduce_zero_label", "padding_size"),
        ),
    ) -> None:
        self.meta_keys = meta_keys

    def transform(self, results: Results) -> dict[str, Any]:
        """Return the image as ``inputs`` and the labels as ``data_samples``.

        Raises:
            ValueError: A label has not the size of the image (of its file, if it was loaded after
                the image), or floating point colours were rounded to integers on the way.
        """
        image = results["img"]
        if results.get("img_dtype") == np.float32 and image.dtype.kind in "ui":
            raise ValueError(
                f"pipeline: the image {results.get('img_path')} holds floating point colours; a "
                f"transform has turned them into {image.dtype}, as PhotoMetricDistortion does, "
                "which takes uint8"
            )
        size = tuple(results["ori_shape"]) if results.get("labels_as_stored") else image.shape[:2]
        sample = SegDataSample()
        sample.set_metainfo({key: results[key] for key in self.meta_keys if key in results})
        for name, field in FIELDS.items():
            if (label := results.get(field.result)) is None:
                continue
            if label.shape[:2] != size:
                raise ValueError(
                    f"pipeline: {name} ({field.result}) has the size {_size(label.shape)}, the "
                    f"image {results.get('img_path')} {_size(image.shape)}: a transform changes "
                    "the image but not all labels; see mtl_plugins.mm.transforms for such that do"
                )
            if field.kind == "normals":
                label = label.transpose(2, 0, 1)
            else:
                label = label[None].astype(np.int64) if field.kind == "classes" else label[None]
            pixels = PixelData(data=to_tensor(np.ascontiguousarray(label)))
            sample.set_field(pixels, field.truth)
        inputs = to_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return {"inputs": inputs, "data_samples": sample}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(meta_keys={tuple(self.meta_keys)})"


def read_file(name: str, file: dict[str, Any]) -> np.ndarray | None:
    """Read a file as its data set asks.

    Args:
        name: Name of the field, for messages.
        file: ``path``, ``read`` (the kind of file, of ``READERS``), and options of that reader.

    Returns:
        The label in the conventions of ``FIELDS``; None if the file says that there is none.

    Raises:
        ValueError: The file is missing or malformed.
    """
    options = {key: value for key, value in file.items() if key not in ("path", "read")}
    try:
        return READERS[file["read"]](file["path"], **options)
    except ModuleNotFoundError:
        raise
    except FileNotFoundError as error:
        raise ValueError(f"{file['path']}: {name}: there is no such file") from error
    except Exception as error:  # each decoder has its own errors
        raise ValueError(f"{file['path']}: {name} {error}") from error


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]}"
