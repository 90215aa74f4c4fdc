"""Ray casting of painted solids through a pin-hole camera, and their shading under one sun.

The world frame has y up; the camera frame has x right, y down and z, the depth, forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np
from demo_scenes.shapes import dot, unit
from demo_scenes.things import Solid


@dataclass(frozen=True, eq=False)
class Camera:
    """A pin-hole camera that looks through the centre of its image.

    Attributes:
        size: height and width of the image (pixels).
        focal: focal length (pixels).
        position: place in the world, ``[3]`` (metres).
        rotation: axes of the camera in the world, the columns of ``[3, 3]``.
    """

    size: tuple[int, int]
    focal: float
    position: np.ndarray
    rotation: np.ndarray

    @property
    def intrinsics(self) -> np.ndarray:
        """Matrix ``[3, 3]`` from camera coordinates to homogeneous pixel indices (column, row)."""
        height, width = self.size
        return np.array(
            [[self.focal, 0, (width - 1) / 2], [0, self.focal, (height - 1) / 2], [0, 0, 1]]
        )

    @cached_property
    def rays(self) -> np.ndarray:
        """World vectors through the pixel centres, float32 ``[H, W, 3]``, one metre deep each."""
        height, width = self.size
        x = (np.arange(width) - (width - 1) / 2) / self.focal
        y = (np.arange(height) - (height - 1) / 2) / self.focal
        right, down, forward = self.rotation.T
        rays = x[:, None] * right + (y[:, None] * down + forward)[:, None]
        return rays.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Body:
    """Solid at a place in the world.

    Attributes:
        solid: the solid, in its own frame.
        position: origin of the solid in the world, float32 ``[3]`` (metres).
        rotation: axes of the solid in the world, the columns of float32 ``[3, 3]``.
    """

    solid: Solid
    position: np.ndarray = field(default_factory=lambda: np.zeros(3, np.float32))
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3, dtype=np.float32))

    def to_local(self, points: np.ndarray) -> np.ndarray:
        """Turn world points ``[..., 3]`` into points of the solid's frame."""
        return (points - self.position) @ self.rotation


@dataclass(frozen=True, eq=False)
class Hit:
    """View of one body alone, without the bodies in front of it.

    Attributes:
        window: rows and columns of the image outside which no ray meets the body.
        depth: depth over the window, ``[h, w]`` (metres), ``inf`` where the ray misses.
        normal: outward unit vectors in the body's frame, ``[h, w, 3]``.
        part: index of the part that was hit, ``[h, w]``.
    """

    window: tuple[slice, slice]
    depth: np.ndarray
    normal: np.ndarray
    part: np.ndarray


@dataclass(frozen=True)
class Light:
    """A sun and a sky.

    Attributes:
        direction: unit vector towards the sun, in the world, float32 ``[3]``.
        sun: RGB strength of the sun, float32 ``[3]``.
        sky: RGB strength of the light from everywhere, float32 ``[3]``.
    """

    direction: np.ndarray
    sun: np.ndarray
    sky: np.ndarray


def cast(body: Body, camera: Camera) -> Hit:
    """Intersect the camera's rays with a body, alone in the world."""
    window = _window(body, camera)
    rays = camera.rays[window]
    # Double precision, since a small difference of squares decides a hit.
    direction = (rays.reshape(-1, 3) @ body.rotation).astype(np.float64)
    origin = body.to_local(camera.position)
    depth = np.full(len(direction), np.inf)
    normal = np.zeros(direction.shape, np.float32)
    part = np.zeros(len(direction), np.int8)
    for index, primitive in enumerate(body.solid.parts):
        entry, facing = primitive.cast(origin, direction)
        nearer = entry < depth
        np.copyto(depth, entry, where=nearer)
        np.copyto(normal, facing, where=nearer[:, None])
        part[nearer] = index
    shape = rays.shape[:2]
    return Hit(window, depth.reshape(shape), normal.reshape(rays.shape), part.reshape(shape))


def compose(hits: Sequence[Hit], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Let the nearest surface win at every pixel.

    Returns:
        depth ``[H, W]`` (metres) and owner ``[H, W]``, the index of the nearest hit. On a tie
        the earlier hit keeps the pixel; where nothing is hit, depth is ``inf`` and owner -1.
    """
    depth = np.full(size, np.inf)
    owner = np.full(size, -1)
    for index, hit in enumerate(hits):
        nearer = hit.depth < depth[hit.window]
        np.copyto(depth[hit.window], hit.depth, where=nearer)
        owner[hit.window][nearer] = index
    return depth, owner


def camera_normals(
    bodies: Sequence[Body], hits: Sequence[Hit], owner: np.ndarray, camera: Camera
) -> np.ndarray:
    """Find the unit normals ``[H, W, 3]`` of the nearest surfaces, in the camera frame."""
    normals = np.zeros((*camera.size, 3), np.float32)
    for index, (body, hit) in enumerate(zip(bodies, hits, strict=True)):
        seen = owner[hit.window] == index
        to_camera = (body.rotation.T @ camera.rotation).astype(np.float32)
        np.copyto(normals[hit.window], hit.normal @ to_camera, where=seen[..., None])
    return normals


def shade(
    bodies: Sequence[Body],
    hits: Sequence[Hit],
    owner: np.ndarray,
    camera: Camera,
    light: Light,
) -> np.ndarray:
    """Colour the nearest surfaces: paint under sky and sun, soft shadows and a highlight.

    Returns:
        RGB ``[H, W, 3]``, 0 is black and 1 is white; highlights may exceed it.
    """
    casters = [body for body in bodies if np.isfinite(body.solid.bounds()).all()]
    eye = camera.position.astype(np.float32)
    image = np.zeros((*camera.size, 3), np.float32)
    for index, (body, hit) in enumerate(zip(bodies, hits, strict=True)):
        seen = owner[hit.window] == index
        ray = camera.rays[hit.window][seen]
        point = eye + hit.depth[seen].astype(np.float32)[:, None] * ray
        normal = hit.normal[seen]
        colour = body.solid.paint(body.to_local(point), normal, hit.part[seen])

        normal = normal @ body.rotation.T
        halfway = unit(light.direction - unit(ray))
        sunlit = np.ones(len(point), np.float32)
        for other in casters:
            if other is not body:
                sunlit *= _sunlit(other, point, light.direction)
        diffuse = sunlit * np.maximum(normal @ light.direction, 0)
        highlight = body.solid.gloss * sunlit * np.maximum(dot(normal, halfway), 0) ** 40
        image[hit.window][seen] = (
            colour * (light.sky + diffuse[:, None] * light.sun) + 0.6 * highlight[:, None]
        )
    return image


def _sunlit(body: Body, point: np.ndarray, to_sun: np.ndarray) -> np.ndarray:
    """Find the share of sunlight ``[N]`` that a body lets through to world points ``[N, 3]``.

    The shadow is cast by the ellipsoid in the body's bounding box and blurred at the edge: soft,
    and far cheaper than a second bundle of rays at every part.
    """
    low, high = body.solid.bounds()
    # In the frame scaled to make that ellipsoid the unit sphere, the shadow is a unit disc across
    # the sun's direction, and falls on what lies behind the centre along it.
    to_sphere = body.rotation * (2 / (high - low))
    along = to_sun @ to_sphere
    along /= np.linalg.norm(along)
    across = np.linalg.svd(along[None])[2][1:]
    to_disc = np.stack([*across, along], axis=-1)
    centre = (body.position @ to_sphere + (high + low) / (high - low)) @ to_disc
    x, y, z = (centre.astype(np.float32) - point @ (to_sphere @ to_disc).astype(np.float32)).T
    shadow = np.clip((1.3 - x * x - y * y) / 0.9, 0, 1)
    return np.where(z > 0, 1 - shadow, 1)


def _window(body: Body, camera: Camera) -> tuple[slice, slice]:
    """Find the rows and columns that hold the projection of a body's bounding box."""
    corners = np.array(list(product(*zip(*body.solid.bounds(), strict=True))))
    height, width = camera.size
    if np.isfinite(corners).all():
        world = corners @ body.rotation.T + body.position
        seen = (world - camera.position) @ camera.rotation
        if seen[:, 2].min() > 1e-3:
            pixel = seen @ camera.intrinsics.T
            pixel = pixel[:, :2] / pixel[:, 2:]
            left, top = np.clip(np.floor(pixel.min(0)).astype(int), 0, (width, height))
            right, bottom = np.clip(np.ceil(pixel.max(0)).astype(int) + 1, 0, (width, height))
            return slice(top, bottom), slice(left, right)
    # A body that reaches behind the camera, as the floor does, has no finite projection.
    return slice(0, height), slice(0, width)
