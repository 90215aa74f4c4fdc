"""MetaGraspNet's raw layout: a folder ``scene<K>/`` a scene, files ``<N>_*`` a viewpoint.

Three scenes in four take the form of MetaGraspNet's synthetic part, one in four that of the real
part, where the amodal masks lie in a file of their own. MetaGraspNet comes without a split:
``train/`` and ``val/`` are ours. ``tools/dataset_converters/metagraspnet.py`` says where the facts
about the format come from. The grasps, keypoints and poses of the original are not drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from demo_scenes.images import save_image
from demo_scenes.scene import Scene
from demo_scenes.things import OBJECTS

_REAL_EVERY = 4
_MASKS_KEYS = ("occlusion_objects", "seg_masks_single")
"""Names of one array in the original, which has now the one, now the other."""

_CATEGORY = {name: number for number, name in enumerate(OBJECTS, start=1)}


def write_metagraspnet(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    """Write one split.

    Args:
        root: folder of the data set.
        split: ``"train"`` or ``"val"``.
        scenes: scenes, numbered from 0 in this order.
    """
    # Only this layout needs h5py; the other layouts are drawn without.
    if find_spec("h5py") is None:
        sys.exit("--layout metagraspnet: needs h5py; pip install 'mtl-plugins[metagraspnet]'")
    for number, scene in enumerate(scenes):
        folder = root / split / f"scene{number}"
        folder.mkdir(parents=True)
        if number % _REAL_EVERY == _REAL_EVERY - 1:
            _write_real(folder, scene)
        else:
            _write_synthetic(folder, scene, _MASKS_KEYS[number % 2])


def _write_synthetic(folder: Path, scene: Scene, masks_key: str) -> None:
    """Write viewpoint 0; ``masks_key`` holds the whole of each object, ``[n, H, W]``."""
    occlusion = np.zeros(scene.depth.shape, np.float32)
    for thing in scene.objects:
        occlusion[thing.visible_mask] = thing.occlusion
    masks = np.array([thing.amodal_mask for thing in scene.objects], np.uint8)
    save_image(folder / "0_rgb.png", scene.rgb)
    np.savez_compressed(folder / "0.npz", **_maps(scene), occlusion=occlusion, **{masks_key: masks})
    boxes = np.array([thing.amodal_box for thing in scene.objects], np.float32)
    _write_hdf5(folder / "0_scene.hdf5", scene, bbox_loose=boxes)


def _write_real(folder: Path, scene: Scene) -> None:
    """Write viewpoint 3, which is labelled in real scenes; there are no boxes."""
    bitmaps = [
        (thing.visible_mask, thing.amodal_mask & ~thing.visible_mask) for thing in scene.objects
    ]
    hidden = np.any([invisible for _, invisible in bitmaps], axis=0)
    save_image(folder / "3_rgb.png", scene.rgb)
    np.savez_compressed(folder / "3.npz", **_maps(scene))
    np.savez_compressed(
        folder / "3_amodal.npz",
        amodal_bitmaps_full_size_instances=np.array(bitmaps, np.uint8),
        occlusion_bitmap_full_size=hidden.astype(np.uint8),
    )
    _write_hdf5(folder / "3_scene.hdf5", scene)


def _maps(scene: Scene) -> dict[str, np.ndarray]:
    """Make the maps: depth (centimetres); number from 1 and class of the object at each pixel."""
    objects = np.zeros(scene.depth.shape, np.int32)
    semantic = np.zeros(scene.depth.shape, np.int32)
    for number, thing in enumerate(scene.objects, start=1):
        objects[thing.visible_mask] = number
        semantic[thing.visible_mask] = _CATEGORY[thing.category]
    return {
        "depth": 100 * scene.depth,
        "instances_objects": objects,
        "instances_semantic": semantic,
    }


def _write_hdf5(path: Path, scene: Scene, **objects: np.ndarray) -> None:
    """Write the camera's pose ``[1, 4, 4]`` (centimetres), the objects' classes and ``objects``."""
    import h5py

    pose = np.eye(4)
    pose[:3, :3] = scene.camera.rotation
    pose[:3, 3] = 100 * scene.camera.position
    categories = np.array([_CATEGORY[thing.category] for thing in scene.objects])
    with h5py.File(path, "w") as file:
        file["camera/pose_relative_to_world"] = pose[None]
        file["objects/categories"] = categories
        for key, array in objects.items():
            file[f"objects/{key}"] = array
