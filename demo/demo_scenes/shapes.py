"""Ray-cast primitives: where a bundle of rays first enters a convex solid.

All primitives share one contract. ``cast(origin, direction)`` takes one origin ``[3]`` and
directions ``[N, 3]`` in the primitive's own frame (metres, y up) and returns

* depth ``[N]``: the ray parameter at the entry point, ``inf`` where the ray misses. A camera whose
  directions have z = 1 in its own frame reads this parameter as depth in metres;
* normal ``[N, 3]``: the outward unit normal there (meaningless where the ray misses).

Only entries are looked for, so a normal always faces the ray's origin, which must lie outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

Vector = tuple[float, float, float]


class Primitive(Protocol):
    """Interface of a shape that a scene can be made of."""

    def cast(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find entry depth ``[N]`` and unit normal ``[N, 3]`` of rays ``[3]``, ``[N, 3]``."""
        ...

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Find the lowest and highest corner, ``[3]`` each, of the box around the shape."""
        ...


@dataclass(frozen=True)
class Ellipsoid:
    """An axis-aligned ellipsoid; a sphere when the three radii are equal (metres)."""

    centre: Vector
    radii: Vector

    def cast(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solve the unit sphere's quadratic in the frame where the ellipsoid is one."""
        radii = np.array(self.radii)
        start = (origin - self.centre) / radii
        step = direction / radii
        a = dot(step, step)
        b = step @ start
        root = b * b - a * (start @ start - 1)
        depth = (-b - np.sqrt(np.maximum(root, 0))) / a
        normal = unit((start + depth[:, None] * step) / radii)
        return _in_front(depth, root > 0), normal

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        centre, radii = np.array(self.centre), np.array(self.radii)
        return centre - radii, centre + radii


@dataclass(frozen=True)
class Frustum:
    """A cone cut at two heights of the y axis; a cylinder or a disc when the radii are equal.

    Attributes:
        bottom: height of the lower cap (metres).
        top: height of the upper cap.
        bottom_radius: radius of the lower cap.
        top_radius: radius of the upper cap.
    """

    bottom: float
    top: float
    bottom_radius: float
    top_radius: float

    def cast(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take the nearer of the entries through the mantle and through a cap."""
        slope = (self.top_radius - self.bottom_radius) / (self.top - self.bottom)
        dx, dy, dz = direction.T
        ox, oy, oz = origin
        radius = self.bottom_radius + slope * (oy - self.bottom)
        a = dx * dx + dz * dz - (slope * dy) ** 2
        b = ox * dx + oz * dz - slope * radius * dy
        root = b * b - a * (ox * ox + oz * oz - radius * radius)
        # This root of the two enters the cone, whichever sign `a` has. A ray along the
        # mantle (a = 0) or level with the caps (dy = 0) divides by zero and is discarded as a miss.
        with np.errstate(divide="ignore", invalid="ignore"):
            mantle = (-b - np.sqrt(np.maximum(root, 0))) / a
            y = oy + mantle * dy
            mantle = _in_front(mantle, (root > 0) & (y >= self.bottom) & (y <= self.top))

            from_above = dy < 0
            cap = (np.where(from_above, self.top, self.bottom) - oy) / dy
            reach = np.where(from_above, self.top_radius, self.bottom_radius)
            distance = (ox + cap * dx) ** 2 + (oz + cap * dz) ** 2
            cap = _in_front(cap, distance <= reach * reach)

        depth = np.minimum(mantle, cap)
        x, y, z = (origin + np.where(np.isfinite(depth), depth, 0)[:, None] * direction).T
        outward = np.stack([x, -slope * (self.bottom_radius + slope * (y - self.bottom)), z], -1)
        normal = unit(outward)
        through_cap = cap < mantle
        normal[through_cap] = 0
        normal[through_cap, 1] = -np.sign(dy[through_cap])
        return depth, normal

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        radius = max(self.bottom_radius, self.top_radius)
        return np.array([-radius, self.bottom, -radius]), np.array([radius, self.top, radius])


@dataclass(frozen=True)
class Box:
    """An axis-aligned box between two corners (metres)."""

    low: Vector
    high: Vector

    def cast(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Apply the slab method: a ray is inside from the last entry to the first exit."""
        with np.errstate(divide="ignore", invalid="ignore"):
            one = (np.array(self.low) - origin) / direction
            other = (np.array(self.high) - origin) / direction
        entries = np.minimum(one, other)
        axis = entries.argmax(-1)
        rows = np.arange(len(direction))
        depth = entries[rows, axis]
        normal = np.zeros_like(direction)
        normal[rows, axis] = -np.sign(direction[rows, axis])
        return _in_front(depth, depth < np.maximum(one, other).min(-1)), normal

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.low), np.array(self.high)


@dataclass(frozen=True)
class Plane:
    """The endless plane where one coordinate is 0, solid below it.

    Attributes:
        axis: index of the coordinate that is 0: 1 for a floor, 2 for a wall that faces +z.
    """

    axis: int

    def cast(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Divide once: a ray enters the plane wherever the ray comes down to it."""
        with np.errstate(divide="ignore"):
            depth = -origin[self.axis] / direction[:, self.axis]
        normal = np.zeros_like(direction)
        normal[:, self.axis] = 1
        return np.where(direction[:, self.axis] < 0, depth, np.inf), normal

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.full(3, -np.inf), np.full(3, np.inf)
        high[self.axis] = 0
        return low, high


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the row-wise dot product ``[N]`` of ``[N, 3]`` and ``[N, 3]``."""
    return np.einsum("ni,ni->n", a, b)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale rows ``[N, 3]`` to length 1."""
    length = np.sqrt(dot(vectors, vectors))[:, None]
    return vectors / np.maximum(length, 1e-12)


def _in_front(depth: np.ndarray, hit: np.ndarray) -> np.ndarray:
    return np.where(hit & (depth > 0), depth, np.inf)
