"""The demo scenes: one geometry behind every label, and layouts that their readers accept."""

from __future__ import annotations

import hashlib
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from demo_scenes.coco import PANOPTIC, THINGS, polygons
from demo_scenes.figure import PARTS
from demo_scenes.pascal import KINDS
from demo_scenes.render import Body, Camera, cast
from demo_scenes.scene import CLASSES, MIN_SIDE, MIN_VISIBLE, Scene, draw_scene
from demo_scenes.shapes import Box, Ellipsoid, Frustum, Plane, Primitive
from demo_scenes.things import OBJECTS, STUFF
from make_demo_data import LAYOUTS, main
from mmengine.registry import DefaultScope
from pycocotools.coco import COCO
from pycocotools.mask import decode, frPyObjects, merge
from scipy.io import loadmat

SPLITS = {"train": 5, "val": 3}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(np.random.default_rng(seed), (240, 320)) for seed in range(8)]


@pytest.fixture(scope="module")
def coco_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "coco"
    main(_arguments(root))
    return root


def _arguments(root: Path, train: int = 5, seed: int = 0) -> list[str]:
    return [
        *("--out", str(root), "--train", str(train), "--val", str(SPLITS["val"])),
        *("--size", "200", "150", "--seed", str(seed)),
    ]


def _digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# --- geometry -----------------------------------------------------------------------------------


def test_shapes_and_types_of_a_scene(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.rgb.shape == scene.normals.shape == (240, 320, 3)
        assert scene.depth.shape == scene.semantic.shape == (240, 320)
        assert (scene.rgb.dtype, scene.semantic.dtype) == (np.uint8, np.uint8)
        assert (scene.depth.dtype, scene.normals.dtype) == (np.float32, np.float32)
        assert np.isfinite(scene.depth).all() and scene.depth.min() > 0
        assert 2 <= len(scene.objects) <= 7


def test_visible_masks_are_disjoint_and_fill_the_image_together_with_the_stuff(
    scenes: list[Scene],
) -> None:
    for scene in scenes:
        stuff = np.isin(scene.semantic, [CLASSES.index(name) for name in STUFF])
        visible = np.array([thing.visible_mask for thing in scene.objects])
        assert (visible.sum(0) + stuff == 1).all()
        for thing in scene.objects:
            assert thing.amodal_mask[thing.visible_mask].all()
            assert thing.visible_mask.sum() >= MIN_VISIBLE
            assert (scene.semantic[thing.visible_mask] == CLASSES.index(thing.category)).all()


def test_occlusion_and_boxes_follow_from_the_masks(scenes: list[Scene]) -> None:
    things = [thing for scene in scenes for thing in scene.objects]
    for thing in things:
        hidden = thing.amodal_mask & ~thing.visible_mask
        assert thing.occlusion == pytest.approx(hidden.sum() / thing.amodal_mask.sum())
        for mask, (x, y, width, height) in (
            (thing.visible_mask, thing.visible_box),
            (thing.amodal_mask, thing.amodal_box),
        ):
            rows, columns = np.nonzero(mask)
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
    # The properties above would hold trivially in scenes where nothing overlaps.
    assert sum(thing.occlusion > 0.1 for thing in things) >= 4


def test_the_nearest_surface_is_the_visible_one(scenes: list[Scene]) -> None:
    for scene in scenes:
        for thing in scene.objects:
            own = thing.amodal_depth
            np.testing.assert_array_equal(scene.depth[thing.visible_mask], own[thing.visible_mask])
            assert (scene.depth <= own).all()
        for one, other in combinations(scene.objects, 2):
            both = one.amodal_mask & other.amodal_mask
            nearer = one.amodal_depth < other.amodal_depth
            assert not (one.visible_mask & both & ~nearer).any()
            assert not (other.visible_mask & both & nearer).any()


def test_normals_are_unit_vectors_that_face_the_camera(scenes: list[Scene]) -> None:
    for scene in scenes:
        np.testing.assert_allclose(np.linalg.norm(scene.normals, axis=-1), 1, atol=1e-5)
        assert ((scene.normals * _points(scene)).sum(-1) < 0).all()


@pytest.mark.parametrize(
    ("category", "degrees"), [("wall", 0.2), ("floor-wood", 0.2), ("sports ball", 3)]
)
def test_normals_agree_with_the_slope_of_the_depth(
    scenes: list[Scene], category: str, degrees: float
) -> None:
    compared = 0
    for scene in scenes:
        points = _points(scene)
        right = points[1:-1, 2:] - points[1:-1, :-2]
        down = points[2:, 1:-1] - points[:-2, 1:-1]
        slope = np.cross(down, right)
        slope /= np.linalg.norm(slope, axis=-1, keepdims=True)
        angle = np.degrees(np.arccos(np.clip((slope * scene.normals[1:-1, 1:-1]).sum(-1), -1, 1)))
        for mask in _surfaces(scene, category):
            # Differences are taken inside the surface, and not where a ball turns away.
            inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3)), borderValue=0) > 0
            inside &= (scene.normals * _points(scene)).sum(-1) < -0.4 * scene.depth
            compared += inside.sum()
            assert angle[inside[1:-1, 1:-1]].max(initial=0) < degrees
    assert compared > 1000


def test_depth_is_metric(scenes: list[Scene]) -> None:
    balls = [(s, mask) for s in scenes for mask in _surfaces(s, "sports ball")]
    assert balls
    for scene, mask in balls:
        points = _points(scene)[mask].astype(np.float64)
        # |p|² = 2 c·p + (r² - |c|²) is linear in the centre c and the constant.
        system = np.column_stack([2 * points, np.ones(len(points))])
        (*centre, constant), *_ = np.linalg.lstsq(system, (points**2).sum(1), rcond=None)
        radius = np.sqrt(constant + np.dot(centre, centre))
        assert 0.09 <= radius <= 0.14
        np.testing.assert_allclose(np.linalg.norm(points - centre, axis=1), radius, atol=1e-4)


def _points(scene: Scene) -> np.ndarray:
    """``[H, W, 3]`` camera coordinates of the surfaces, from depth and intrinsics."""
    row, column = np.indices(scene.depth.shape)
    pixel = np.stack([column, row, np.ones_like(row)], -1)
    return scene.depth[..., None] * (pixel @ np.linalg.inv(scene.camera.intrinsics).T)


def _surfaces(scene: Scene, category: str) -> list[np.ndarray]:
    """Visible masks of the objects of a category, or of the stuff whose name starts with it."""
    objects = [thing.visible_mask for thing in scene.objects if thing.category == category]
    stuff = [index for index, name in enumerate(STUFF) if name.startswith(category)]
    return objects or ([np.isin(scene.semantic, stuff)] if stuff else [])


SOLIDS = (
    Ellipsoid((0.2, -0.1, 0.1), (0.5, 0.3, 0.4)),
    Frustum(-0.5, 0.5, 0.5, 0.2),
    Frustum(-0.2, 0.3, 0.1, 0.6),
    Box((-0.4, -0.2, -0.3), (0.3, 0.5, 0.2)),
)


@pytest.mark.parametrize("shape", [*SOLIDS, Plane(axis=1)], ids=repr)
def test_a_primitive_is_entered_on_its_surface_from_outside(shape: Primitive) -> None:
    rng = np.random.default_rng(0)
    origin = np.array([1.5, 2.0, -1.0])
    direction = rng.normal(0, 0.7, (4000, 3)) - origin
    depth, normal = shape.cast(origin, direction)
    hit = np.isfinite(depth)
    assert hit.mean() > 0.02 and (depth > 0).all()
    np.testing.assert_allclose(np.linalg.norm(normal[hit], axis=-1), 1, atol=1e-6)
    assert ((normal * direction)[hit].sum(-1) < 0).all()
    point = origin + depth[hit, None] * direction[hit]
    low, high = shape.bounds()
    assert (point >= low - 1e-6).all() and (point <= high + 1e-6).all()
    # Seen from just outside, against the normal, the surface is just as near.
    for start, facing in list(zip(point, normal[hit], strict=True))[:50]:
        again, _ = shape.cast(start + 1e-3 * facing, -facing[None])
        assert again[0] == pytest.approx(1e-3, abs=2e-5)


@pytest.mark.parametrize("shape", SOLIDS, ids=repr)
def test_no_ray_slips_through_a_solid(shape: Primitive) -> None:
    rng = np.random.default_rng(0)
    centre = np.mean(shape.bounds(), axis=0)
    one, other = np.array([1.5, 2.0, -1.0]), np.array([-1.0, -2.5, 1.2])
    direction = rng.normal(0, 0.7, (4000, 3)) - one
    depth, _ = shape.cast(one, direction)
    hit = np.isfinite(depth)
    surface = one + depth[hit, None] * direction[hit]
    # A convex solid holds every point between its centre and its surface.
    inside = centre + 0.99 * (surface - centre)
    for origin in (one, other):
        entry, _ = shape.cast(origin, inside - origin)
        assert (entry < 1).all()


@pytest.mark.parametrize("category", OBJECTS)
def test_no_ray_outside_its_window_meets_a_body(category: str) -> None:
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    body = Body(OBJECTS[category](rng), np.array([0.1, 0.0, 1.2]), turn)
    camera = Camera((90, 120), 150.0, np.zeros(3), np.eye(3))
    rays = camera.rays.reshape(-1, 3) @ body.rotation
    depth = [part.cast(body.to_local(np.zeros(3)), rays)[0] for part in body.solid.parts]
    everywhere = np.isfinite(np.min(depth, axis=0))
    assert 0 < np.isfinite(cast(body, camera).depth).sum() == everywhere.sum()


def test_the_camera_looks_through_the_centre_of_its_image() -> None:
    camera = Camera((4, 6), 3.0, np.zeros(3), np.eye(3))
    np.testing.assert_allclose(camera.rays.mean((0, 1)), [0, 0, 1], atol=1e-6)
    projected = camera.rays @ camera.intrinsics.T
    row, column = np.indices((4, 6))
    np.testing.assert_allclose(projected[..., 0], column, atol=1e-5)
    np.testing.assert_allclose(projected[..., 1], row, atol=1e-5)


@pytest.mark.parametrize("size", [(96, 96), (96, 300), (300, 96)])
def test_small_and_narrow_images_have_room_for_objects(size: tuple[int, int]) -> None:
    for seed in range(4):
        assert len(draw_scene(np.random.default_rng(seed), size).objects) >= 2


def test_too_small_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match=f"at least {MIN_SIDE} pixels"):
        draw_scene(np.random.default_rng(0), (MIN_SIDE - 1, 320))


# --- COCO layout --------------------------------------------------------------------------------


def test_polygons_rasterise_to_their_mask() -> None:
    mask = np.zeros((40, 50), bool)
    mask[5:30, 5:30] = True
    mask[10:14, 10:20] = False  # a hole
    mask[20, 20] = False  # a hole of one pixel
    mask[2, 45] = True  # a speck
    mask[30, 30] = True  # joined by a corner
    mask[35:, 40:] = True  # in the image's corner
    outlines = polygons(mask)
    assert len(outlines) > 3
    assert (_rasterise(outlines, mask.shape) == mask).all()


@pytest.mark.parametrize("split", SPLITS)
def test_instances_load_with_pycocotools_and_match_the_panoptic_labels(
    coco_root: Path, split: str
) -> None:
    coco = COCO(str(coco_root / f"annotations/instances_{split}2017.json"))
    panoptic = _panoptic(coco_root, split)
    assert sorted(coco.imgs) == sorted(panoptic) == list(range(1, SPLITS[split] + 1))
    for image_id, (ids, segments) in panoptic.items():
        record = coco.imgs[image_id]
        image = cv2.imread(str(coco_root / f"{split}2017" / record["file_name"]))
        assert image.shape[:2] == ids.shape == (record["height"], record["width"]) == (150, 200)

        assert set(np.unique(ids)) == {segment["id"] for segment in segments}
        for segment in segments:
            assert segment["area"] == (ids == segment["id"]).sum()
            assert segment["bbox"] == _box(ids == segment["id"])

        things = [s for s in segments if coco.cats.get(s["category_id"])]
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
        assert len(annotations) == len(things)
        for annotation, segment in zip(annotations, things, strict=True):
            for key in ("category_id", "bbox", "area", "iscrowd"):
                assert annotation[key] == segment[key]
            drawn = coco.annToMask(annotation).astype(bool)
            visible = ids == segment["id"]
            assert (drawn & visible).sum() > 0.99 * (drawn | visible).sum()


@pytest.mark.parametrize("split", SPLITS)
def test_stuff_maps_hold_the_category_less_one(coco_root: Path, split: str) -> None:
    for image_id, (ids, segments) in _panoptic(coco_root, split).items():
        path = coco_root / f"stuffthingmaps/{split}2017/{image_id:012d}.png"
        stuff = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert stuff.dtype == np.uint8
        for segment in segments:
            assert (stuff[ids == segment["id"]] == segment["category_id"] - 1).all()


def test_mmdet_loads_it_under_the_standard_classes(coco_root: Path) -> None:
    datasets = pytest.importorskip("mmdet.datasets")
    names = {category["id"]: category["name"] for category in PANOPTIC}
    instances = datasets.CocoDataset(
        data_root=str(coco_root),
        ann_file="annotations/instances_train2017.json",
        data_prefix={"img": "train2017/"},
        filter_cfg={"filter_empty_gt": True, "min_size": 32},
    )
    panoptic = datasets.CocoPanopticDataset(
        data_root=str(coco_root),
        ann_file="annotations/panoptic_train2017.json",
        data_prefix={"img": "train2017/", "seg": "annotations/panoptic_train2017/"},
    )
    for dataset, categories in ((instances, THINGS), (panoptic, PANOPTIC)):
        assert len(dataset) == SPLITS["train"]
        # Labels are positions in the file's list: it must be complete and in the official order.
        assert dataset.metainfo["classes"] == tuple(c["name"] for c in categories)
    for record, expected in zip(instances, panoptic, strict=True):
        assert Path(record["img_path"]).is_file() and Path(expected["seg_map_path"]).is_file()
        assert [i["bbox"] for i in record["instances"]] == [
            i["bbox"] for i in expected["instances"]
        ]
        assert [i["bbox_label"] for i in record["instances"]] == [
            i["bbox_label"] for i in expected["instances"]
        ]
    source = json.loads((coco_root / "annotations/instances_train2017.json").read_text())
    labels = [i["bbox_label"] for record in instances for i in record["instances"]]
    assert [THINGS[label]["name"] for label in labels] == [
        names[annotation["category_id"]] for annotation in source["annotations"]
    ]


def test_categories_carry_the_official_ids() -> None:
    assert (len(THINGS), len(PANOPTIC)) == (80, 133)
    ids = {category["name"]: category["id"] for category in PANOPTIC}
    official = {"person": 1, "stop sign": 13, "cup": 47, "toothbrush": 90, "banner": 92}
    official |= {"floor-wood": 118, "wall-brick": 171, "tree-merged": 184, "rug-merged": 200}
    assert ids.items() >= official.items()


def _panoptic(root: Path, split: str) -> dict[int, tuple[np.ndarray, list[dict]]]:
    """Image id -> the PNG's segment ids ``[H, W]``, and the records of the segments."""
    folder = root / "annotations"
    content = json.loads((folder / f"panoptic_{split}2017.json").read_text())
    panoptic = {}
    for annotation in content["annotations"]:
        path = folder / f"panoptic_{split}2017" / annotation["file_name"]
        blue, green, red = np.moveaxis(cv2.imread(str(path)).astype(int), -1, 0)
        ids = red + 256 * green + 256**2 * blue
        panoptic[annotation["image_id"]] = (ids, annotation["segments_info"])
    return panoptic


def _rasterise(outlines: list[list[float]], shape: tuple[int, int]) -> np.ndarray:
    return decode(merge(frPyObjects(outlines, *shape))).astype(bool)


def _box(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    x, y = int(columns.min()), int(rows.min())
    return [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]


# --- layouts of dense prediction -----------------------------------------------------------------

DENSE_SPLITS = {"train": 2, "val": 1}
_NYU = {"wall-brick": "wall", "wall-tile": "wall", "floor-wood": "floor", "sports ball": "chair"}
_NYU |= {"teddy bear": "sofa", "clock": "picture", "book": "books"}
_STREET = {"floor-wood": "road", "wall-brick": "building", "wall-tile": "wall", "cup": "car"}
_STREET |= {"teddy bear": "person", "bottle": "rider", "book": "bus", "clock": "bicycle"}
_GROUPS = {"floor-wood": "flat", "wall-brick": "construction", "wall-tile": "construction"}
_GROUPS |= {"teddy bear": "human", "bottle": "human", "cup": "vehicle", "book": "vehicle"}
_VOC = {"wall-brick": "background", "wall-tile": "background", "floor-wood": "background"}
_VOC |= {"bottle": "bottle", "sports ball": "chair", "book": "diningtable", "person": "person"}

READERS: dict[str, tuple[str, str, dict[str, Any], dict[str, str]]] = {
    "nyuv2": ("nyuv2", "MTANNYUv2Dataset", {}, {**_NYU, "bottle": "objects", "cup": "objects"}),
    "cityscapes_mt": (
        *("cityscapes_mt", "MTANCityscapesDataset", {"classes": 7}),
        {**_GROUPS, "sports ball": "vehicle", "clock": "vehicle"},
    ),
    "cityscapes_mt-19": (
        *("cityscapes_mt", "MTANCityscapesDataset", {"classes": 19}),
        {**_STREET, "sports ball": "motorcycle"},
    ),
    "cityscapes": (
        *("cityscapes", "CityscapesDenseDataset", {"depth": "metres"}),
        {**_STREET, "sports ball": "motorcycle"},
    ),
    "nyud": ("nyud", "NYUDMTDataset", {}, {**_NYU, "cup": "lamp", "bottle": "other prop"}),
    "nyud_png": ("nyud_png", "NYUDMTDataset", {}, {**_NYU, "cup": "lamp", "bottle": "other prop"}),
    "pascal": (
        *("pascal", "PASCALMTDataset", {}),
        {**_VOC, "cup": "pottedplant", "teddy bear": "sheep", "clock": "tvmonitor"},
    ),
}
"""Layout, type and options of its reader, name of the class that is read for each drawn class."""

_SIZE, _COLOUR = (96, 128), (96, 128, 3)
_I, _F, _U, _W = (np.dtype(kind) for kind in ("int8", "float32", "uint8", "uint16"))
_MTAN = {"{split}/image/{i}.npy": (_F, _COLOUR), "{split}/depth/{i}.npy": (_F, (*_SIZE, 1))}
_NYUD = {"segmentation/{nyu}.png": (_U, _SIZE), "depth/{nyu}.npy": (_F, _SIZE)}
_STEM = "{split}/{split}ville/{split}ville_{i:06d}_000019"
FILES: dict[str, dict[str, tuple[np.dtype, tuple[int, ...]]]] = {
    "nyuv2": {
        **_MTAN,
        "{split}/label/{i}.npy": (_I, _SIZE),
        "{split}/normal/{i}.npy": (_F, _COLOUR),
    },
    "cityscapes_mt": {
        **_MTAN,
        **{f"{{split}}/label_{n}/{{i}}.npy": (_I, _SIZE) for n in (2, 7, 19)},
    },
    "cityscapes": {f"disparity/{_STEM}_disparity.png": (_W, _SIZE)},
    "nyud": {
        **_NYUD,
        "images/{nyu}.jpg": (_U, _COLOUR),
        "normals/{nyu}.npy": (_F, _COLOUR),
        "edge/{nyu}.npy": (_U, _SIZE),
    },
    "nyud_png": {
        **_NYUD,
        "images/{nyu}.png": (_U, _COLOUR),
        "normals/{nyu}.png": (_U, _COLOUR),
        "edge/{nyu}.png": (_U, _SIZE),
    },
    "pascal": {
        "JPEGImages/{voc}.jpg": (_U, _COLOUR),
        "semseg/{folder}/{voc}.png": (_U, _SIZE),
        "pascal-context/trainval/{voc}.mat": (_W, _SIZE),
        "human_parts/{voc}.mat": (np.dtype(object), (1, 1)),
        "normals_distill/{voc}.png": (_U, _COLOUR),
        "sal_distill/{voc}.png": (_U, _SIZE),
    },
}
"""Files of an image by layout: their type and shape. Of ``cityscapes`` the disparity only."""

LISTS = {"nyud": ("gt_sets", "nyu"), "nyud_png": ("gt_sets", "nyu")}
LISTS |= {"pascal": ("ImageSets/Context", "voc")}
INFO = {f"db_info/{name}.json" for name in ("context_classes", "nyu_classes", "pascal_part")}


@pytest.fixture(scope="module")
def dense_roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    roots = {layout: tmp_path_factory.mktemp("dense") / layout for layout in FILES}
    for layout, root in roots.items():
        main(_dense_arguments(layout, root))
    return roots


@pytest.fixture(scope="module")
def dense_scenes() -> dict[tuple[bool, str], list[Scene]]:
    """Scenes by whether there are persons, and split."""
    return {
        (persons, split): [
            draw_scene(np.random.default_rng([0, index, number]), _SIZE, kinds)
            for number in range(DENSE_SPLITS[split])
        ]
        for persons, kinds in ((False, tuple(OBJECTS)), (True, KINDS))
        for index, split in enumerate(DENSE_SPLITS)
    }


def _dense_arguments(layout: str, root: Path) -> list[str]:
    counts = [text for name, count in DENSE_SPLITS.items() for text in (f"--{name}", str(count))]
    return ["--layout", layout, "--out", str(root), *counts, "--size", "128", "96"]


@pytest.mark.parametrize("layout", FILES)
def test_dense_files_have_their_names_types_and_shapes(
    dense_roots: dict[str, Path], layout: str
) -> None:
    root = dense_roots[layout]
    named: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    for split, count in DENSE_SPLITS.items():
        ids = {
            "nyu": [f"{2 * i + 1 + (split == 'val'):04d}" for i in range(count)],
            "voc": [f"{2008 + (split == 'val')}_{i:06d}" for i in range(count)],
        }
        for i in range(count):
            names = {key: value[i] for key, value in ids.items()}
            folder = ("VOC12", "pascal-context")[i % 2]
            for name, kind in FILES[layout].items():
                named[name.format(split=split, i=i, folder=folder, **names)] = kind
        if layout in LISTS:
            under, key = LISTS[layout]
            assert (root / under / f"{split}.txt").read_text().splitlines() == ids[key]
    for name, kind in named.items():
        array = _array(root / name)
        assert (array.dtype, array.shape) == kind, name
    others = {"demo.json"}
    if layout in LISTS:
        others |= {f"{LISTS[layout][0]}/{split}.txt" for split in DENSE_SPLITS}
    others |= INFO if layout == "pascal" else set()
    found = set(_digests(root))
    if layout == "cityscapes":
        # Test images are the validation images again.
        found = {name for name in found if name.startswith("disparity/") and "/test" not in name}
        others = set()
    assert found == named.keys() | others


@pytest.mark.parametrize("split", DENSE_SPLITS)
@pytest.mark.parametrize("reader", READERS)
def test_every_label_is_read_as_it_was_drawn(
    dense_roots: dict[str, Path],
    dense_scenes: dict[tuple[bool, str], list[Scene]],
    reader: str,
    split: str,
) -> None:
    layout, kind, options, names = READERS[reader]
    dataset = _dataset(kind, data_root=str(dense_roots[layout]), split=split, **options)
    scenes = dense_scenes[layout == "pascal", split]
    assert len(dataset) == len(scenes) == DENSE_SPLITS[split]
    classes = dataset.metainfo["classes"]
    for labels, scene in zip(dataset, scenes, strict=True):
        image = labels["img"][..., ::-1] * (255.0 if labels["img"].dtype == np.float32 else 1.0)
        far = np.abs(image - scene.rgb).mean()
        assert far < 6 if labels["img_path"].endswith("jpg") else far < 1e-3

        border = _border(scene)
        wanted = np.zeros(_SIZE, int)
        for drawn in np.unique(scene.semantic):
            wanted[scene.semantic == drawn] = classes.index(names[CLASSES[drawn]])
        seen = labels["gt_seg_map"]
        if layout == "cityscapes":
            # The maps are made of polygons without holes.
            assert (seen == wanted).mean() > 0.97
        else:
            np.testing.assert_array_equal(seen, np.where(border, 255, wanted))

        shadow = _shadow(scene)
        assert 0 < shadow.sum() < 0.05 * shadow.size
        if "depth" in dataset.available:
            depth = labels["gt_depth_map"]
            assert depth.dtype == np.float32
            np.testing.assert_array_equal(depth == 0, shadow)
            if layout == "cityscapes_mt":
                # In pixels, of the street that is ten times as large as the scene.
                depth = 0.22 * 2262 / 10 / np.maximum((depth * 65535 - 1) / 256, 1e-9)
            elif layout == "cityscapes":
                depth = depth / 10
            near = 1e-3 if "cityscapes" in layout else 0
            np.testing.assert_allclose(depth[~shadow], scene.depth[~shadow], near)
        if "normals" in dataset.available:
            normals, known = labels["gt_normal_map"], ~shadow
            if layout == "pascal":
                known &= ~_drawn(scene, "cup") & ~_drawn(scene, "teddy bear")
            np.testing.assert_array_equal(normals.any(-1), known)
            # From the camera's axes, with z away from the camera, to NYU's.
            wanted_normals = scene.normals * [1, 1, -1]
            step = 0.01 if layout in ("nyud_png", "pascal") else 1e-6
            np.testing.assert_allclose(normals[known], wanted_normals[known], atol=step)
            np.testing.assert_allclose(np.linalg.norm(normals[known], axis=-1), 1, atol=1e-6)
        if layout in ("nyud", "nyud_png"):
            np.testing.assert_array_equal(labels["gt_edge_map"], border)
        if layout == "pascal":
            beside = cv2.dilate(border.astype(np.uint8), np.ones((3, 3)))
            assert labels["gt_edge_map"].sum() > 50
            assert (labels["gt_edge_map"] <= beside).all()
            salient = labels["gt_sal_map"] > 0
            assert sum((salient == thing.visible_mask).all() for thing in scene.objects) == 1
            persons = _drawn(scene, "person")
            assert ("gt_human_parts" in labels) == persons.any()
            parts = np.zeros(_SIZE, int)
            for index, name in enumerate(PARTS):
                parts[persons & (scene.parts == index)] = _SURVEYED[name]
            np.testing.assert_array_equal(labels.get("gt_human_parts", parts), parts)


_SURVEYED = {"head": 1, "neck": 2, "torso": 2} | {
    side + name: part
    for name, part in {"uarm": 3, "larm": 4, "hand": 4, "uleg": 5, "lleg": 6, "foot": 6}.items()
    for side in "lr"
}
"""The survey's six human parts: head, torso, upper arms, lower arms, upper legs, lower legs."""


def test_mtan_layouts_hold_colours_from_0_to_1_and_no_class_as_minus_1(
    dense_roots: dict[str, Path], dense_scenes: dict[tuple[bool, str], list[Scene]]
) -> None:
    border = _border(dense_scenes[False, "train"][0])
    for layout in ("nyuv2", "cityscapes_mt"):
        root = dense_roots[layout] / "train"
        image = np.load(root / "image/0.npy")
        assert 0 <= image.min() < 0.3 and 0.7 < image.max() <= 1
        for folder in root.glob("label*"):
            np.testing.assert_array_equal(np.load(folder / "0.npy") == -1, border)
    two, seven = (np.load(root / f"label_{count}/0.npy") for count in (2, 7))
    np.testing.assert_array_equal(two[~border] == 1, seven[~border] >= 5)
    assert set(np.unique(two)) == {-1, 0, 1}


def test_a_person_is_drawn_in_the_layout_of_pascal_alone(
    dense_scenes: dict[tuple[bool, str], list[Scene]],
) -> None:
    for persons in (False, True):
        scenes = [scene for split in DENSE_SPLITS for scene in dense_scenes[persons, split]]
        assert any(_drawn(scene, "person").any() for scene in scenes) == persons


def test_files_of_matlab_name_what_is_in_them_and_are_the_same_each_time(
    dense_roots: dict[str, Path], tmp_path: Path
) -> None:
    root = dense_roots["pascal"]
    main(_dense_arguments("pascal", tmp_path / "same"))
    assert _digests(tmp_path / "same") == _digests(root)
    numbers = json.loads((root / "db_info/context_classes.json").read_text())
    persons = 0
    for path in root.glob("human_parts/*.mat"):
        assert b"Created on" not in path.read_bytes()  # a date
        context = loadmat(root / "pascal-context/trainval" / path.name)["LabelMap"]
        for thing in loadmat(path)["anno"]["objects"].item().ravel():
            name, mask = thing["class"].item(), thing["mask"].astype(bool)
            context_name = {"diningtable": "table"}.get(name, name)
            assert (context[mask] == numbers[context_name]).all() and mask.sum() >= MIN_VISIBLE
            assert (thing["class_ind"].item() == 15) == (name == "person")
            persons += name == "person"
            masks = [part["mask"] for part in thing["parts"].ravel()]
            assert bool(masks) == (name == "person")
            if masks:
                np.testing.assert_array_equal(np.sum(masks, 0), mask)
    assert persons > 0


def _dataset(kind: str, **options: Any) -> Any:
    import mtl_plugins.mm.transforms  # registers them
    from mtl_plugins.mm import datasets

    assert mtl_plugins.mm.transforms.LoadMultiTask
    with DefaultScope.overwrite_default_scope("mmseg"):
        return getattr(datasets, kind)(pipeline=[{"type": "LoadMultiTask"}], **options)


def _array(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".mat":
        content = loadmat(path)
        return content["LabelMap"] if "LabelMap" in content else content["anno"]["objects"]
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def _drawn(scene: Scene, category: str) -> np.ndarray:
    return scene.semantic == CLASSES.index(category)


def _border(scene: Scene) -> np.ndarray:
    """Pixels whose right or lower neighbour is of another object, wall or floor, one by one."""
    numbers = scene.semantic.astype(int)
    for number, thing in enumerate(scene.objects, start=1):
        numbers[thing.visible_mask] = 1000 * number
    owner = np.pad(numbers, ((0, 1), (0, 1)), mode="edge").tolist()
    border = np.zeros(_SIZE, bool)
    for r, c in np.ndindex(_SIZE):
        border[r, c] = owner[r][c] != owner[r][c + 1] or owner[r][c] != owner[r + 1][c]
    return border


def _shadow(scene: Scene) -> np.ndarray:
    """Pixels whose right neighbour is 10 cm nearer, or more: the sensor's shadow of one pixel."""
    nearer = scene.depth[:, :-1] - scene.depth[:, 1:] >= 0.1
    return np.pad(nearer, ((0, 0), (0, 1)))


# --- command line -------------------------------------------------------------------------------


def test_a_seed_gives_the_same_files_and_another_seed_others(
    coco_root: Path, tmp_path: Path
) -> None:
    main(_arguments(tmp_path / "same"))
    main(_arguments(tmp_path / "other", seed=1))
    files, other = _digests(coco_root), _digests(tmp_path / "other")
    assert _digests(tmp_path / "same") == files
    assert other.keys() == files.keys()
    assert all(other[name] != files[name] for name in files)
    assert files["train2017/000000000001.jpg"] != files["val2017/000000000001.jpg"]


def test_more_scenes_leave_the_earlier_ones_as_they_were(coco_root: Path, tmp_path: Path) -> None:
    main(_arguments(tmp_path / "more", train=SPLITS["train"] + 1))
    files, more = _digests(coco_root), _digests(tmp_path / "more")
    assert more.keys() - files.keys()
    for name, digest in files.items():
        if not name.endswith(".json") or "val" in name:
            assert more[name] == digest


def test_complete_data_are_left_alone_and_others_are_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "demo"
    main(_arguments(root, train=2))
    written = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    main(_arguments(root, train=2))
    assert "left as it is" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == written

    main(_arguments(root, train=1))
    assert [path.name for path in (root / "train2017").iterdir()] == ["000000000001.jpg"]
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_stopped_run_leaves_the_earlier_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "demo"
    main(_arguments(root, train=1))
    before = _digests(root)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(LAYOUTS, "coco", stop)
    with pytest.raises(KeyboardInterrupt):
        main(_arguments(root, train=2))
    assert _digests(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_other_peoples_data_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(SystemExit):
        main(_arguments(tmp_path))
    assert "holds other data" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize(
    ("option", "values", "message"),
    [
        ("--size", ["320", "64"], f"--size 320 64: both sides must be at least {MIN_SIDE}"),
        ("--train", ["0"], "--train 0: must be at least 1"),
        ("--val", ["-1"], "--val -1: must be at least 1"),
        ("--seed", ["-1"], "--seed -1: must not be negative"),
        ("--layout", ["voc"], "invalid choice: 'voc'"),
    ],
)
def test_bad_options_are_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    values: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "demo"), option, *values])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
