"""Parts of a scene: six kinds of object, a wall and a floor, each a painted solid.

Objects are toy-sized (0.1 to 0.4 m), so that each is tens of pixels tall at arm's length, and
differ in shape, colour and texture, so that a small detector learns the kinds in a few hundred
iterations. Objects have the names of COCO's categories.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from demo_scenes.shapes import Box, Ellipsoid, Frustum, Plane, Primitive

Paint = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Colour of surface points: point float32 ``[N, 3]`` (metres) and normal float32 ``[N, 3]`` in the
solid's own frame, index of the part ``[N]`` -> RGB ``[N, 3]`` in 0..1."""


@dataclass(frozen=True)
class Solid:
    """Union of convex parts with one paint, in its own frame: y up, origin on the ground below.

    Attributes:
        category: COCO's name of the solid.
        parts: convex primitives (metres).
        paint: colour of the surface, see ``Paint``.
        gloss: strength of the highlight, 0 (matt) to 1.
    """

    category: str
    parts: tuple[Primitive, ...]
    paint: Paint
    gloss: float = 0.0

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Find the lowest and highest corner ``[3]`` (metres) of the box around all parts."""
        lows, highs = zip(*(part.bounds() for part in self.parts), strict=True)
        return np.min(lows, axis=0), np.max(highs, axis=0)


def sports_ball(rng: np.random.Generator) -> Solid:
    """Make a beach ball: white and coloured segments around a randomly turned axis."""
    radius = rng.uniform(0.09, 0.14)
    centre = np.array([0, radius, 0])
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    hue = rng.uniform()
    colours = np.array([_hsv(hue, 0.85, 0.95), _WHITE, _hsv(hue + 0.4, 0.85, 0.85), _WHITE])

    def paint(point: np.ndarray, normal: np.ndarray, part: np.ndarray) -> np.ndarray:
        x, y, z = ((point - centre) @ turn / radius).T
        segment = np.floor(np.arctan2(x, z) / (2 * np.pi) * 8).astype(int) % 4
        return np.where(_column(np.abs(y) > 0.93), colours[0], colours[segment])

    return Solid("sports ball", (Ellipsoid(tuple(centre), (radius,) * 3),), paint, gloss=0.5)


def bottle(rng: np.random.Generator) -> Solid:
    """Make a glass bottle in green, brown or blue, with a paper label and a metal cap."""
    radius, height = rng.uniform(0.04, 0.055), rng.uniform(0.26, 0.36)
    shoulder, neck = 0.58 * height, 0.76 * height
    parts = (
        Frustum(0, shoulder, radius, radius),
        Frustum(shoulder, neck, radius, 0.38 * radius),
        Frustum(neck, 0.93 * height, 0.38 * radius, 0.34 * radius),
        Frustum(0.92 * height, height, 0.45 * radius, 0.45 * radius),
    )
    glass = _hsv(rng.choice([0.36, 0.08, 0.58]) + rng.normal(0, 0.02), 0.8, rng.uniform(0.3, 0.55))
    label, cap = _hsv(rng.uniform(), 0.7, 0.75), _hsv(rng.choice([0.0, 0.13]), 0.6, 0.85)

    def paint(point: np.ndarray, normal: np.ndarray, part: np.ndarray) -> np.ndarray:
        level = point[:, 1] / shoulder
        colour = np.where(_column(part == 3), cap, glass)
        colour = np.where(_column((level > 0.3) & (level < 0.85)), [0.93, 0.9, 0.82], colour)
        return np.where(_column((level > 0.5) & (level < 0.65)), label, colour)

    return Solid("bottle", parts, paint, gloss=0.9)


def cup(rng: np.random.Generator) -> Solid:
    """Make a mug with a handle and a pale band, filled with coffee."""
    radius = rng.uniform(0.055, 0.075)
    height = radius * rng.uniform(1.7, 2.2)
    parts = (
        Frustum(0, height, rng.uniform(0.7, 1) * radius, radius),
        Ellipsoid((1.05 * radius, 0.52 * height, 0), (0.4 * radius, 0.3 * height, 0.13 * radius)),
    )
    glaze = _hsv(rng.uniform(), rng.uniform(0.6, 0.9), rng.uniform(0.6, 0.9))
    band = _hsv(rng.uniform(), 0.15, 0.95)

    def paint(point: np.ndarray, normal: np.ndarray, part: np.ndarray) -> np.ndarray:
        x, y, z = point.T
        banded = (part == 0) & (np.abs(y / height - 0.6) < 0.17)
        coffee = (normal[:, 1] > 0.99) & (x * x + z * z < (0.87 * radius) ** 2) & (part == 0)
        colour = np.where(_column(banded), band, glaze)
        return np.where(_column(coffee), [0.2, 0.11, 0.06], colour)

    return Solid("cup", parts, paint, gloss=0.6)


def book(rng: np.random.Generator) -> Solid:
    """Make a hardback, lying or standing: framed cover with a title block, white pages, a spine."""
    width, height = rng.uniform(0.16, 0.22), rng.uniform(0.22, 0.3)
    thickness = rng.uniform(0.035, 0.06)
    cover = _hsv(rng.uniform(), rng.uniform(0.5, 0.85), rng.uniform(0.35, 0.7))
    ink = _hsv(rng.choice([0.12, 0.0]), 0.5, 0.95)
    # `across`, `along` and `through` are the axes of the cover's width, its height and the pages.
    if rng.uniform() < 0.5:
        across, along, through = 0, 2, 1
    else:
        across, along, through = 0, 1, 2
    size = np.empty(3)
    size[[across, along, through]] = width, height, thickness
    middle = np.array([0, size[1] / 2, 0])
    part = Box(tuple(middle - size / 2), tuple(middle + size / 2))

    def paint(point: np.ndarray, normal: np.ndarray, part: np.ndarray) -> np.ndarray:
        place = (point - middle) / size
        u, v, w = place[:, across], place[:, along], place[:, through]
        edge = np.maximum(np.abs(u), np.abs(v))
        frame = (edge > 0.40) & (edge < 0.44)
        title = (np.abs(u) < 0.28) & (np.abs(np.abs(v - 0.12) - 0.08) < 0.035)
        inked = (np.abs(normal[:, through]) > 0.5) & (frame | title)
        spine = (normal[:, across] < -0.5) & (np.abs(np.abs(v) - 0.3) < 0.03)
        pages = (np.abs(normal[:, along]) > 0.5) | (normal[:, across] > 0.5)
        pages &= np.abs(w) < 0.4
        sheet = 0.88 + 0.06 * np.sin(w * 60)
        colour = np.where(_column(inked | spine), ink, cover)
        return np.where(_column(pages), _column(sheet) * [1, 0.97, 0.9], colour)

    return Solid("book", (part,), paint, gloss=0.15)


def clock(rng: np.random.Generator) -> Solid:
    """Make a wall clock, its face towards +y: a coloured rim, twelve ticks and two hands."""
    radius = rng.uniform(0.11, 0.17)
    rim = _hsv(rng.uniform(), rng.uniform(0.5, 0.9), rng.uniform(0.25, 0.7))
    hands = [(rng.uniform(0, 2 * np.pi), 0.42, 0.05), (rng.uniform(0, 2 * np.pi), 0.68, 0.035)]

    def paint(point: np.ndarray, normal: np.ndarray, part: np.ndarray) -> np.ndarray:
        x, z = point[:, 0] / radius, point[:, 2] / radius
        distance, angle = np.hypot(x, z), np.arctan2(x, z)
        to_tick = np.abs((angle / (2 * np.pi) * 12 + 0.5) % 1 - 0.5) * distance
        dark = (distance > 0.66) & (distance < 0.78) & (to_tick < 0.07)
        for turn, length, half_width in hands:
            along = x * np.sin(turn) + z * np.cos(turn)
            aside = x * np.cos(turn) - z * np.sin(turn)
            dark |= (along > -0.1) & (along < length) & (np.abs(aside) < half_width)
        colour = np.where(_column(dark), [0.1, 0.1, 0.12], [0.95, 0.94, 0.9])
        return np.where(_column((distance > 0.85) | (normal[:, 1] < 0.5)), rim, colour)

    return Solid("clock", (Frustum(0, 0.035, radius, radius),), paint, gloss=0.3)


def teddy_bear(rng: np.random.Generator) -> Solid:
    """Make a sitting bear, facing +z: ellipsoids in brown fur, pale muzzle, dark eyes and nose."""
    s = rng.uniform(0.28, 0.38)
    eye_x, eye_y, eye_z = 0.085 * s, 0.84 * s, 0.15 * s
    parts = (
        Ellipsoid((0, 0.34 * s, 0), (0.25 * s, 0.32 * s, 0.21 * s)),
        Ellipsoid((0, 0.78 * s, 0.02 * s), (0.23 * s, 0.21 * s, 0.2 * s)),
        Ellipsoid((0, 0.72 * s, 0.19 * s), (0.1 * s, 0.08 * s, 0.09 * s)),
        *(Ellipsoid((x * 0.19 * s, 0.95 * s, 0), (0.09 * s, 0.09 * s, 0.05 * s)) for x in (-1, 1)),
        *(
            Ellipsoid((x * 0.27 * s, 0.42 * s, 0.09 * s), (0.09 * s, 0.19 * s, 0.1 * s))
            for x in (-1, 1)
        ),
        *(
            Ellipsoid((x * 0.17 * s, 0.11 * s, 0.22 * s), (0.11 * s, 0.11 * s, 0.2 * s))
            for x in (-1, 1)
        ),
    )
    fur = _hsv(rng.uniform(0.05, 0.1), rng.uniform(0.45, 0.7), rng.uniform(0.4, 0.7))
    pale = 0.45 * fur + 0.55 * np.array([0.95, 0.88, 0.75])
    grain = _grain(rng, 250)

    def paint(point: np.ndarray, normal: np.ndarray, part: np.ndarray) -> np.ndarray:
        x, y, z = point.T
        eyes = (np.abs(x) - eye_x) ** 2 + (y - eye_y) ** 2 + (z - eye_z) ** 2 < (0.04 * s) ** 2
        nose = x**2 + (y - 0.745 * s) ** 2 + (z - 0.275 * s) ** 2 < (0.042 * s) ** 2
        belly = (part == 0) & (x**2 + (y - 0.32 * s) ** 2 < (0.16 * s) ** 2) & (z > 0)
        soles = (part > 6) & (z > 0.37 * s)
        colour = np.where(_column((part == 2) | belly | soles), pale, fur)
        colour = np.where(_column(eyes | nose), [0.05, 0.04, 0.04], colour)
        return colour * _column(1 + 0.2 * grain(point))

    return Solid("teddy bear", parts, paint)


OBJECTS: dict[str, Callable[[np.random.Generator], Solid]] = {
    "sports ball": sports_ball,
    "bottle": bottle,
    "cup": cup,
    "book": book,
    "clock": clock,
    "teddy bear": teddy_bear,
}


def wooden_floor(rng: np.random.Generator) -> Solid:
    """Make planks along z with their top at y = 0, each in its own shade."""
    wood = _hsv(rng.uniform(0.06, 0.11), rng.uniform(0.25, 0.55), rng.uniform(0.45, 0.8))
    width = rng.uniform(0.1, 0.16)
    grain = _grain(rng, 35)

    def paint(point: np.ndarray, normal: np.ndarray, part: np.ndarray) -> np.ndarray:
        x, z = point[:, 0] / width, point[:, 2] / (7 * width)
        row = np.floor(x)
        z = z + 0.37 * row
        shade = 0.85 + 0.25 * _shuffle(row, np.floor(z))
        shade += 0.07 * grain(point * np.array([1, 0, 0.12], np.float32))
        gap = (_to_joint(x) < 0.03) | (_to_joint(z) < 0.004)
        return wood * _column(np.where(gap, 0.5, shade))

    return Solid("floor-wood", (Plane(axis=1),), paint, gloss=0.1)


def brick_wall(rng: np.random.Generator) -> Solid:
    """Make red, yellow or grey bricks in running bond, the front at z = 0."""
    hue, saturation = rng.choice([(0.03, 0.5), (0.1, 0.35), (0.6, 0.08)])
    brick = _hsv(hue + rng.normal(0, 0.01), saturation, rng.uniform(0.5, 0.75))
    return _wall("wall-brick", rng, brick, (0.2, 0.075), offset=0.5, variation=0.35, joint=0.005)


def tiled_wall(rng: np.random.Generator) -> Solid:
    """Make square tiles in a pale colour, the front at z = 0."""
    side = rng.uniform(0.13, 0.2)
    tile = _hsv(rng.uniform(), rng.uniform(0.05, 0.25), rng.uniform(0.75, 0.9))
    return _wall("wall-tile", rng, tile, (side, side), offset=0, variation=0.08, joint=0.003)


WALLS = (brick_wall, tiled_wall)

STUFF = ("wall-brick", "wall-tile", "floor-wood")


def _wall(
    category: str,
    rng: np.random.Generator,
    colour: np.ndarray,
    cell: tuple[float, float],
    offset: float,
    variation: float,
    joint: float,
) -> Solid:
    """Make a wall of cells (width, height in metres), each row shifted by ``offset`` cells."""
    grain = _grain(rng, 60)

    def paint(point: np.ndarray, normal: np.ndarray, part: np.ndarray) -> np.ndarray:
        row = point[:, 1] / cell[1]
        column = point[:, 0] / cell[0] + offset * np.floor(row)
        shade = 1 + variation * (_shuffle(np.floor(row), np.floor(column)) - 0.5)
        shade += 0.05 * grain(point)
        mortar = (_to_joint(row) * cell[1] < joint) | (_to_joint(column) * cell[0] < joint)
        return np.where(_column(mortar), [0.72, 0.7, 0.67], colour * _column(shade))

    return Solid(category, (Plane(axis=2),), paint, gloss=0.1)


_WHITE = np.array([0.95, 0.95, 0.93], np.float32)


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def _column(values: np.ndarray) -> np.ndarray:
    """Make ``[N, 1]`` of ``[N]``, to choose or scale whole colours."""
    return values[:, None]


def _to_joint(position: np.ndarray) -> np.ndarray:
    """Find the distance to the nearest whole number, in cells."""
    return np.abs(position - np.round(position))


def _shuffle(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Draw a number in 0..1 for each cell, the same at every call."""
    return np.modf(np.abs(np.sin(row * 12.9898 + column * 78.233)) * 43758.5453)[0]


def _grain(rng: np.random.Generator, frequency: float) -> Callable[[np.ndarray], np.ndarray]:
    """Draw a smooth random texture in -1..1 over points ``[N, 3]``: a mean of plane waves."""
    waves = rng.normal(0, frequency, size=(3, 4)).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, size=4).astype(np.float32)
    return lambda point: np.sin(point @ waves + phase).mean(-1)
