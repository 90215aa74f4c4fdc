"""A jointed doll: a person of simple solids, whose parts have the names of PASCAL-Part."""

from __future__ import annotations

import colorsys

import numpy as np
from demo_scenes.shapes import Ellipsoid, Primitive
from demo_scenes.things import Solid

PARTS = (
    *("head", "neck", "torso"),
    *("luarm", "llarm", "lhand", "ruarm", "rlarm", "rhand"),
    *("luleg", "llleg", "lfoot", "ruleg", "rlleg", "rfoot"),
)
"""PASCAL-Part's name of each part of the solid; l is the doll's own left."""

_DOWN, _OUT, _UP = (0, -1), (1, 0), (0, 1)
_POSES = ((_DOWN, _DOWN), (_OUT, _OUT), (_OUT, _UP), (_OUT, _DOWN))
"""Directions (outwards, up) of upper and lower arm."""


def figure(rng: np.random.Generator) -> Solid:
    """Make a standing doll that faces +z, each of its arms in a random pose."""
    s = rng.uniform(0.42, 0.52)
    parts: list[Primitive] = [
        Ellipsoid((0, 0.9 * s, 0), (0.075 * s, 0.1 * s, 0.085 * s)),
        Ellipsoid((0, 0.79 * s, 0), (0.04 * s, 0.06 * s, 0.04 * s)),
        Ellipsoid((0, 0.61 * s, 0), (0.12 * s, 0.19 * s, 0.08 * s)),
    ]
    # Seen from the front, a left limb is on the right.
    for side in (1, -1):
        upper, lower = _POSES[rng.integers(len(_POSES))]
        place = np.array([0.12, 0.73])
        for (out, up), length, width in (
            (upper, 0.16, 0.042),
            (lower, 0.15, 0.035),
            (lower, 0.05, 0.038),
        ):
            step = length * np.array([out, up])
            middle = place + step / 2
            radii = np.maximum(0.58 * np.abs(step), width)
            parts.append(
                Ellipsoid(
                    (side * middle[0] * s, middle[1] * s, 0),
                    (radii[0] * s, radii[1] * s, width * s),
                )
            )
            place = place + step
    for side in (1, -1):
        x = side * 0.065 * s
        parts += [
            Ellipsoid((x, 0.36 * s, 0), (0.056 * s, 0.14 * s, 0.06 * s)),
            Ellipsoid((x, 0.14 * s, 0), (0.045 * s, 0.13 * s, 0.05 * s)),
            Ellipsoid((x, 0.025 * s, 0.03 * s), (0.045 * s, 0.025 * s, 0.08 * s)),
        ]
    skin = np.array([0.87, 0.66, 0.5], np.float32) * rng.uniform(0.55, 1.05)
    shirt = np.array(colorsys.hsv_to_rgb(rng.uniform(), 0.75, rng.uniform(0.5, 0.9)), np.float32)
    trousers = np.array(colorsys.hsv_to_rgb(rng.uniform(), 0.5, rng.uniform(0.25, 0.5)), np.float32)
    cloth = {"torso": shirt, "luarm": shirt, "ruarm": shirt}
    cloth |= dict.fromkeys(("luleg", "llleg", "ruleg", "rlleg"), trousers)
    cloth |= dict.fromkeys(("lfoot", "rfoot"), np.array([0.12, 0.1, 0.1], np.float32))
    colours = np.array([cloth.get(name, skin) for name in PARTS])
    hair = np.array([0.2, 0.13, 0.08], np.float32) * rng.uniform(0.5, 2)

    def paint(point: np.ndarray, normal: np.ndarray, part: np.ndarray) -> np.ndarray:
        x, y, z = point.T / s
        eyes = (np.abs(x) - 0.03) ** 2 + (y - 0.915) ** 2 < 0.011**2
        colour = np.where(((part == 0) & eyes & (z > 0))[:, None], 0.05, colours[part])
        return np.where(((part == 0) & (y + 0.6 * (z < 0) > 0.95))[:, None], hair, colour)

    return Solid("person", tuple(parts), paint)
