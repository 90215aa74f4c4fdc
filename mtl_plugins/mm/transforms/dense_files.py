"""Files of dense prediction's data sets, read into the conventions of ``mm.structures.FIELDS``."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine import fileio
from PIL import Image

from mtl_plugins.extras import require
from mtl_plugins.mm.structures import IGNORED
from mtl_plugins.mm.thinning import thin

NORMAL_TOLERANCE = 0.1
"""Largest deviation from 1 of the length of a normal that counts as a unit vector.

Scaled files hold interpolated vectors and PNGs hold rounded ones, so that a tenth of a file's
normals may deviate more; all are scaled to length 1. Shorter ones than this are unknown.
"""

PERSON = 15
"""Number of the category ``person`` in PASCAL's files of parts."""
_SIDES = {"lear": 1, "lebrow": 1, "leye": 1, "luarm": 3, "llarm": 4, "lhand": 4} | {
    "luleg": 5,
    "llleg": 6,
    "lfoot": 6,
}
PARTS = {"hair": 1, "head": 1, "mouth": 1, "nose": 1, "neck": 2, "torso": 2} | {
    side + name[1:]: part for name, part in _SIDES.items() for side in "lr"
}
"""Class of each part of PASCAL's persons: head, torso, upper and lower arms and legs."""

TRAIN_IDS = np.full(256, IGNORED, np.uint8)
"""Class of each of Cityscapes' label ids, by the benchmark's 19 classes."""
TRAIN_IDS[[7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]] = range(19)


STEPS = {"1": 255, "L;2": 85, "L;4": 17}
"""Steps to which decoders stretch the grey values of a PNG with less than 8 bits, by the mode."""


def read_array(path: str, labels: bool = False) -> np.ndarray:
    """Read an npy of numbers, a PNG or a JPEG; colours are in the order red, green, blue.

    Args:
        path: Path of the file.
        labels: Whether the values of a PNG with less than 8 bits are labels, which stay as stored,
            rather than shades of grey from 0 to 255.

    Raises:
        ValueError: The file is not of that format.
    """
    content = io.BytesIO(fileio.get(path))
    if path.endswith(".npy"):
        array = np.load(content, allow_pickle=False)
        if array.dtype.kind not in "buif":
            raise ValueError(f"holds {array.dtype}, expected are numbers")
        return array
    # Pillow keeps the numbers of an image with a palette, and 16 bits; OpenCV gives colours.
    image = Image.open(content)
    step = STEPS.get(_raw_mode(image), 1)
    array = np.array(image)
    if array.dtype == bool:
        array = array * np.uint8(255)
    return array // np.uint8(step) if labels and step > 1 else array


def stretches(path: str) -> bool:
    """Tell if decoders stretch the labels in a file: of one bit, 1 becomes 255."""
    return _raw_mode(Image.open(io.BytesIO(fileio.get(path)))) in STEPS


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's name of the pixels as stored; empty where it has none, as for a JPEG."""
    tiles = getattr(image, "tile", ())
    raw = tiles[0][3] if tiles else ""
    return raw if isinstance(raw, str) else ""


def read_image(path: str, stored: bool = True) -> np.ndarray:
    """Read an image as ``[H, W, 3]`` in the order blue, green, red: uint8, or float32 of floats.

    Args:
        path: Path of the file.
        stored: Whether pixels stay as stored, rather than turned as a camera wrote into a JPEG.
    """
    if not path.endswith(".npy"):
        flag = "color_ignore_orientation" if stored else "color"
        image = mmcv.imfrombytes(fileio.get(path), flag=flag)
        if image is None:
            raise ValueError("is no image that can be decoded")
        return image
    image = read_array(path)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"has the shape {image.shape}, expected is (height, width, 3)")
    if image.dtype != np.uint8:
        image = image.astype(np.float32)
        if not np.isfinite(image).all():
            raise ValueError("has values that are not finite")
    return np.ascontiguousarray(image[..., ::-1])


def read_classes(
    path: str, classes: int, first: int = 0, table: Sequence[int] | None = None
) -> np.ndarray:
    """Read the class of each pixel.

    Args:
        path: Path of the file; -1 and 255 are pixels without a class.
        classes: Number of classes.
        first: Number of the first class in the file; if it is 1, 0 is a pixel without a class.
        table: Class of each value of the file from 0 to 255, where it holds other numbers.

    Returns:
        Classes from 0 on as uint8 ``[H, W]``, with 255 for none.
    """
    values = _plane(read_array(path, labels=True))
    if (values != np.round(values)).any() or not np.isfinite(values).all():
        raise ValueError("has values that are no whole numbers, such as NaN or 0.5")
    labels = values.astype(np.int64)
    labels[labels == -1] = IGNORED
    if table is not None:
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= len(table):
            raise ValueError(f"has the value {labels.min()} or {labels.max()}, unknown as a label")
        labels = np.asarray(table)[labels].astype(np.int64)
    none = (labels == IGNORED) | (labels == first - 1)
    wrong = labels[~none & ((labels < first) | (labels >= first + classes))]
    if wrong.size:
        raise ValueError(
            f"has the class {wrong[0]}; the classes are {first} to {first + classes - 1}, and "
            f"{first - 1} and 255 for none"
        )
    return np.where(none, IGNORED, labels - first).astype(np.uint8)


def read_saliency(path: str) -> np.ndarray:
    """Read saliency from an image of 8 bits: 1 above half, as the survey does, else 0."""
    values = _plane(read_array(path))
    if values.dtype != np.uint8:
        raise ValueError(f"holds {values.dtype}; expected are 8 bits")
    if values.max(initial=0) == 1:
        raise ValueError("has no value above 1; expected are 0 for no to 255 for yes")
    return (values > 127).astype(np.uint8)


def read_binary(path: str) -> np.ndarray:
    """Read 0, 1 and 255 for unknown from an npy, or 0 to 255 from an image, 1 being above half."""
    values = _plane(read_array(path))
    if path.endswith(".npy"):
        if not np.isin(values, (0, 1, IGNORED)).all():
            raise ValueError("has other values than 0, 1 and 255 for unknown")
        return values.astype(np.uint8)
    if values.dtype != np.uint8 or 0 < values.max(initial=0) < 128:
        raise ValueError(
            f"has {values.dtype} values of at most {values.max(initial=0)}; expected are 8 bits, "
            "0 for no and 255 for yes"
        )
    return (values > 127).astype(np.uint8)


def read_depth(path: str, scale: float = 1.0) -> np.ndarray:
    """Read depth, or its inverse, from an npy or a PNG, as float32 ``[H, W]``, 0 being unknown.

    Values that are not finite are unknown. An npy without negative values passes.

    Args:
        path: Path of the file.
        scale: Factor on all values.
    """
    values = _plane(read_array(path))
    depth = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if (depth < 0).any():
        raise ValueError(f"has a negative depth, {depth.min():g}; unknown pixels are 0 or NaN")
    return depth * np.float32(scale)


def read_disparity(path: str, inverse: bool = True, focal: float = 0.22 * 2262) -> np.ndarray:
    """Read Cityscapes' disparity: ``(p - 1) / 256`` pixels for the value p of a PNG of 16 bits.

    Args:
        path: Path of the file; 0 is unknown. A disparity of 0 is a point at infinity and unknown.
        inverse: True for the disparity, False for depth in metres.
        focal: Baseline in metres times focal length in pixels.
    """
    values = _plane(read_array(path))
    if values.dtype != np.uint16:
        raise ValueError(f"holds {values.dtype}; Cityscapes' disparity has 16 bits")
    disparity = np.maximum((values.astype(np.float32) - 1) / 256, 0)
    if inverse:
        return disparity
    known = disparity > 0
    return np.where(known, np.float32(focal) / np.where(known, disparity, 1), np.float32(0))


def read_normals(path: str, only: str | None = None, classes: Sequence[int] = ()) -> np.ndarray:
    """Read unit vectors as float32 ``[H, W, 3]``; unknown ones are zero.

    An npy holds the vectors, an image of 8 bits ``255 * (n + 1) / 2``, or black where unknown. See
    :data:`NORMAL_TOLERANCE` for vectors of another length.

    Args:
        path: Path of the file.
        only: Path of PASCAL-Context's map, whose pixels of other classes are unknown; None to keep
            all.
        classes: Classes of that map that have normals.
    """
    values = read_array(path)
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError(f"has the shape {values.shape}, expected is (height, width, 3)")
    normals = values.astype(np.float32)
    if not path.endswith(".npy"):
        if values.dtype != np.uint8:
            raise ValueError(f"holds {values.dtype}; expected are 8 bits")
        normals = np.where(values.any(2, keepdims=True), 2 * normals / 255 - 1, 0)
    elif not np.isfinite(normals).all():
        raise ValueError("has normals that are not finite; unknown ones are zero vectors")
    if only is not None:
        kept = np.isin(read_context(only), classes)
        if kept.shape != normals.shape[:2]:
            raise ValueError(f"has the size {normals.shape[:2]}, {only!r} the size {kept.shape}")
        normals = np.where(kept[..., None], normals, 0)
    length = np.linalg.norm(normals, axis=2)
    known = length > NORMAL_TOLERANCE
    off = np.abs(length[known] - 1) > NORMAL_TOLERANCE
    if np.abs(normals).max(initial=0) > 1 + NORMAL_TOLERANCE or off.sum() > 0.1 * off.size:
        raise ValueError(
            f"has normals that are not of unit length: {off.sum()} of {off.size} deviate by more "
            f"than {NORMAL_TOLERANCE}, such as {length[known][off.argmax()]:.3g}; unknown ones are "
            "zero vectors"
        )
    return unit(normals, known)


def unit(normals: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Scale known normals ``[H, W, 3]`` to length 1, and set the others to zero."""
    length = np.linalg.norm(normals, axis=2)
    known = known & (length > NORMAL_TOLERANCE)
    length = np.where(known, length, 1)[..., None]
    return np.where(known[..., None], normals / length, 0).astype(np.float32)


def read_context(path: str) -> np.ndarray:
    """Read PASCAL-Context's class of each pixel, ``LabelMap`` of a ``.mat``."""
    return np.asarray(_mat(path, "LabelMap")).astype(np.int64)


def read_context_edges(path: str) -> np.ndarray:
    """Read the edges between PASCAL-Context's segments: where the Laplacian is not 0, thinned."""
    labels = read_context(path).astype(np.float64)
    return thin(cv2.Laplacian(labels, cv2.CV_64F) != 0).astype(np.uint8)


def read_parts(path: str) -> np.ndarray | None:
    """Read the parts of the persons in one of PASCAL's ``.mat`` files.

    Returns:
        0 for the background, else the number of the part in :data:`PARTS`, as uint8 ``[H, W]``.
        None if the image has no person with parts.
    """
    parts = None
    for thing in np.atleast_1d(_mat(path, "anno")["objects"].item()).ravel():
        if int(np.squeeze(thing["class_ind"])) != PERSON:
            continue
        for part in np.ravel(thing["parts"]):
            name, mask = str(np.squeeze(part["part_name"])), np.asarray(part["mask"]).astype(bool)
            if name not in PARTS:
                raise ValueError(f"has the part {name!r}; known are {', '.join(PARTS)}")
            parts = np.zeros(mask.shape, np.uint8) if parts is None else parts
            if mask.shape != parts.shape:
                raise ValueError(f"has masks of the sizes {parts.shape} and {mask.shape}")
            parts[mask] = PARTS[name]
    return parts


Reader = Callable[..., np.ndarray | None]
READERS: Mapping[str, Reader] = {
    "image": read_image,
    "classes": read_classes,
    "binary": read_binary,
    "saliency": read_saliency,
    "depth": read_depth,
    "disparity": read_disparity,
    "normals": read_normals,
    "context_edges": read_context_edges,
    "parts": read_parts,
}
"""Ways to read a file, by the name under which a data set asks for them."""


def _plane(array: np.ndarray) -> np.ndarray:
    """Return ``[H, W]`` of ``[H, W]`` or ``[H, W, 1]``."""
    plane = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if plane.ndim != 2:
        raise ValueError(f"has the shape {array.shape}, expected is (height, width)")
    return plane


def _mat(path: str, key: str) -> Any:
    """Return a variable of a file of MATLAB."""
    require("PASCAL_MT", "scipy", extra="dense")
    from scipy.io import loadmat

    try:
        content = loadmat(io.BytesIO(fileio.get(path)))
    except NotImplementedError as error:  # version 7.3, which is HDF5
        raise ValueError("is of MATLAB's version 7.3; PASCAL's files are older") from error
    if key not in content:
        raise ValueError(f"has no variable {key!r}")
    return content[key]
