"""Write image files, for every layout."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def save_image(path: Path, image: np.ndarray) -> None:
    """Write an image in the format of the path's suffix; make the folder if it is missing.

    Args:
        path: file to write.
        image: pixels, RGB ``[H, W, 3]`` or single-channel ``[H, W]``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    # OpenCV answers False, and raises nothing, when a disk is full or a folder is read-only.
    if not cv2.imwrite(str(path), image):
        raise OSError(f"cannot write {path}")
