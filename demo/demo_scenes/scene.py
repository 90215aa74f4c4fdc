"""Random rooms with objects, rendered once into every label that a task may want.

Image, depth, normals, visible and amodal masks come from the same rays through the pixel centres,
and so agree to the pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from demo_scenes.figure import figure
from demo_scenes.render import Body, Camera, Hit, Light, camera_normals, cast, compose, shade
from demo_scenes.things import OBJECTS, STUFF, WALLS, Solid, wooden_floor

CLASSES: tuple[str, ...] = (*STUFF, *OBJECTS, "person")
"""Names of the values of ``Scene.semantic``; persons are drawn where a layout asks for them."""

MIN_SIDE = 96
"""Shortest image side (pixels) at which objects are still large enough to be seen."""

MIN_VISIBLE = 64
"""Fewest visible pixels of an object: eight by eight, one cell of a stride-8 feature map."""

_MAKERS = {**OBJECTS, "person": figure}

_FEWEST, _MOST = 2, 7
_CANDIDATES = 200
_CROWDING = 0.75
"""Share of objects that are put in line with an earlier object, so that objects overlap."""

_ROOM = 2
"""Number of bodies, wall and floor, that come before the objects in every scene."""

_FACE_ROOM = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32)
"""Rotation of a solid's y axis, up, to the world's z axis, away from the wall."""


@dataclass(frozen=True, eq=False)
class SceneObject:
    """Object of a scene, also where something nearer hides it.

    Attributes:
        category: COCO's name of the object.
        amodal_depth: depth of the object's front, float32 ``[H, W]`` (metres), ``inf`` elsewhere.
        visible_mask: pixels at which nothing else is nearer, bool ``[H, W]``.
    """

    category: str
    amodal_depth: np.ndarray
    visible_mask: np.ndarray

    @property
    def amodal_mask(self) -> np.ndarray:
        """Mask of the whole object within the image, hidden or not, bool ``[H, W]``."""
        return np.isfinite(self.amodal_depth)

    @property
    def occlusion(self) -> float:
        """Share of the amodal mask that is hidden, 0 to 1."""
        return 1 - float(self.visible_mask.sum() / self.amodal_mask.sum())

    @property
    def visible_box(self) -> tuple[int, int, int, int]:
        """Box around the visible mask: x, y, width, height (pixels)."""
        return box_of(self.visible_mask)

    @property
    def amodal_box(self) -> tuple[int, int, int, int]:
        """Box around the amodal mask: x, y, width, height (pixels)."""
        return box_of(self.amodal_mask)


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and its labels.

    Attributes:
        rgb: image, uint8 ``[H, W, 3]``.
        depth: z in the camera frame, float32 ``[H, W]`` (metres), finite everywhere.
        normals: unit vectors in the camera frame, facing the camera, float32 ``[H, W, 3]``.
        semantic: index into ``CLASSES``, uint8 ``[H, W]``.
        parts: index into the parts of the solid that is seen, int8 ``[H, W]``.
        objects: objects with disjoint visible masks; wall or floor fills the rest.
        camera: the view, for layouts that store intrinsics or point clouds.
        bodies: wall, floor and the objects, to draw the scene from another camera.
        light: the light on them.
    """

    rgb: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    semantic: np.ndarray
    parts: np.ndarray
    objects: tuple[SceneObject, ...]
    camera: Camera
    bodies: tuple[Body, ...]
    light: Light


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int], kinds: Sequence[str] = tuple(OBJECTS)
) -> Scene:
    """Draw a random scene of two to seven objects, each visible on ``MIN_VISIBLE`` pixels or more.

    Args:
        rng: generator, the only source of randomness.
        size: height and width (pixels), each at least ``MIN_SIDE``.
        kinds: categories to draw objects from; one that is named twice is drawn twice as often.
    """
    if min(size) < MIN_SIDE:
        raise ValueError(f"size is {size}: height and width must be at least {MIN_SIDE} pixels")
    camera = _random_camera(rng, size)
    bodies, hits = _furnish(rng, camera, kinds)
    light = _random_light(rng)
    scene = _render(bodies, hits, camera, light)
    noise = 0.012 * rng.standard_normal(scene.rgb.shape, np.float32)
    return replace(scene, rgb=_expose(scene.rgb + noise))


def view(scene: Scene, camera: Camera) -> Scene:
    """Draw a scene anew from another camera, without noise.

    Args:
        scene: bodies and light to look at.
        camera: place and lens to look from. Objects that are not seen from there are left out of
            ``Scene.objects``. A camera whose ``rotation`` is a reflection sees the mirror image.
    """
    hits = [cast(body, camera) for body in scene.bodies]
    seen = _render(scene.bodies, hits, camera, scene.light)
    return replace(seen, rgb=_expose(seen.rgb))


def _render(bodies: Sequence[Body], hits: Sequence[Hit], camera: Camera, light: Light) -> Scene:
    """Make all labels, and the image before its exposure (float32, 0 is black and 1 is white)."""
    size = camera.size
    depth, owner = compose(hits, size)
    categories = [body.solid.category for body in bodies]
    class_of_body = np.array([CLASSES.index(category) for category in categories], np.uint8)
    parts = np.zeros(size, np.int8)
    for index, hit in enumerate(hits):
        np.copyto(parts[hit.window], hit.part, where=owner[hit.window] == index)
    # Blur of half a pixel hides the stairs that one ray a pixel leaves along the edges.
    rgb = cv2.GaussianBlur(shade(bodies, hits, owner, camera, light), (0, 0), 0.5)
    return Scene(
        rgb=rgb,
        depth=depth.astype(np.float32),
        normals=camera_normals(bodies, hits, owner, camera),
        semantic=class_of_body[owner],
        parts=parts,
        objects=tuple(
            SceneObject(categories[index], _amodal_depth(hits[index], size), owner == index)
            for index in range(_ROOM, len(bodies))
            if (owner == index).any()
        ),
        camera=camera,
        bodies=tuple(bodies),
        light=light,
    )


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Find the box around a mask, bool ``[H, W]``: x, y, width, height (pixels)."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return x, y, width, height


def _random_camera(rng: np.random.Generator, size: tuple[int, int]) -> Camera:
    """Place a camera at the height of a seated child, which looks at the foot of the wall."""
    yaw, pitch = np.radians(rng.uniform(-12, 12)), np.radians(rng.uniform(10, 16))
    forward = [np.sin(yaw) * np.cos(pitch), -np.sin(pitch), -np.cos(yaw) * np.cos(pitch)]
    right = [np.cos(yaw), 0, np.sin(yaw)]
    down = np.cross(forward, right)
    position = np.array([0, rng.uniform(0.38, 0.6), rng.uniform(1.7, 2.1)])
    return Camera(size, 1.3 * min(size), position, np.stack([right, down, forward], axis=-1))


def _furnish(
    rng: np.random.Generator, camera: Camera, kinds: Sequence[str]
) -> tuple[list[Body], list[Hit]]:
    """Place wall and floor, then objects that neither collide nor hide one another too far."""
    wall = WALLS[rng.integers(len(WALLS))]
    bodies = [Body(wall(rng)), Body(wooden_floor(rng))]
    hits = [cast(body, camera) for body in bodies]
    wanted = rng.choice(list(kinds), size=rng.integers(_FEWEST, _MOST + 1))
    for _ in range(_CANDIDATES):
        placed = len(bodies) - _ROOM
        if placed == len(wanted):
            break
        body = _place(rng, str(wanted[placed]), _aim(rng, hits[_ROOM:], camera), camera)
        if any(_collide(body, other) for other in bodies[_ROOM:]):
            continue
        hit = cast(body, camera)
        _, owner = compose([*hits, hit], camera.size)
        if np.bincount(owner.ravel(), minlength=len(hits) + 1).min() >= MIN_VISIBLE:
            bodies.append(body)
            hits.append(hit)
    return bodies, hits


def _aim(rng: np.random.Generator, objects: list[Hit], camera: Camera) -> float:
    """Draw a column of the image, 0 (left) to 1: any, or more often that of an earlier object."""
    column = rng.uniform(0.06, 0.94)
    if objects and rng.uniform() < _CROWDING:
        columns = objects[rng.integers(len(objects))].window[1]
        middle = (columns.start + columns.stop) / 2 / camera.size[1]
        column = middle + rng.normal(0, 0.05)
    return float(np.clip(column, 0.06, 0.94))


def _place(rng: np.random.Generator, category: str, column: float, camera: Camera) -> Body:
    """Make a random object near a column: a clock hangs, all else stands on the floor."""
    solid = _MAKERS[category](rng)
    height, width = camera.size
    ray = camera.rays[int(rng.uniform(0.05, 0.45) * height), int(column * width)]
    if category == "clock":
        radius = solid.bounds()[1][0]
        position = camera.position - camera.position[2] / ray[2] * ray
        position[1] = max(position[1], radius + 0.05)
        return Body(solid, position.astype(np.float32), _FACE_ROOM)
    z = rng.uniform(_reach(solid) + 0.02, camera.position[2] - 0.8)
    position = camera.position + (z - camera.position[2]) / ray[2] * ray
    position[1] = 0
    turn = np.radians(rng.uniform(-60, 60))
    cos, sin = np.cos(turn), np.sin(turn)
    rotation = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], np.float32)
    return Body(solid, position.astype(np.float32), rotation)


def _collide(body: Body, other: Body) -> bool:
    """Check whether the circles around two footprints overlap, seen from above."""
    apart = np.hypot(*(body.position - other.position)[[0, 2]])
    return bool(apart < _reach(body.solid) + _reach(other.solid))


def _reach(solid: Solid) -> float:
    """Find the radius of the circle on the ground around a solid (metres)."""
    corners = np.abs(solid.bounds())[:, [0, 2]]
    return float(np.hypot(*corners.max(0)))


def _random_light(rng: np.random.Generator) -> Light:
    """Place a sun behind the camera, above it."""
    sun = rng.uniform((-1, 0.9, 0.5), (1, 1.6, 1.2)).astype(np.float32)
    tint = rng.uniform(0.94, 1.06, 3).astype(np.float32)
    return Light(sun / np.linalg.norm(sun), sun=0.75 * tint, sky=0.5 * tint)


def _expose(image: np.ndarray) -> np.ndarray:
    """Turn strengths of light, 1 is white, into the values of an image, uint8."""
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _amodal_depth(hit: Hit, size: tuple[int, int]) -> np.ndarray:
    depth = np.full(size, np.inf, np.float32)
    depth[hit.window] = hit.depth
    return depth
