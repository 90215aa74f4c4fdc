"""Thinning of the edges that a data set gives and a metric compares."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np


def thin(mask: np.ndarray) -> np.ndarray:
    """Thin lines to a width of one pixel by the two-step algorithm of Guo and Hall (1989).

    Args:
        mask: Pixels ``[H, W]``.

    Returns:
        Mask of the pixels that are left; each connected set stays one.
    """
    thinned = mask.astype(np.uint8)
    left = -1
    while left != (left := cv2.countNonZero(thinned)):
        for kept in _kept():
            around = cv2.filter2D(thinned, -1, _BITS, borderType=cv2.BORDER_CONSTANT)
            thinned = np.minimum(thinned, cv2.LUT(around, kept))
    return thinned.astype(bool)


# Bit of each neighbour, counterclockwise from the right.
_BITS = np.array([[8, 4, 2], [16, 0, 1], [32, 64, 128]], np.float32)


@cache
def _kept() -> tuple[np.ndarray, np.ndarray]:
    """Return, for either step, 1 at the neighbourhoods whose centre stays."""
    x = [(np.arange(256) >> bit & 1).astype(bool) for bit in range(8)]
    either = [(x[i] | x[(i + 1) % 8]).astype(int) for i in range(8)]
    crossings = sum(~x[i] & either[i + 1] for i in (0, 2, 4, 6))
    width = np.minimum(sum(either[0::2]), sum(either[1::2]))
    removable = (crossings == 1) & (width >= 2) & (width <= 3)
    sides = [(x[i + 1] | x[i + 2] | ~x[(i + 7) % 8]) & x[i] for i in (0, 4)]
    first, second = ((~removable | side).astype(np.uint8) for side in sides)
    return first, second
