"""Partial labels from the file to the batch, and the metrics: what is absent stays absent."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms import Compose
from mmdet.evaluation import CocoMetric, SemSegMetric
from mmdet.registry import DATASETS
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.registry import DATA_SAMPLERS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from PIL import Image
from torch.testing import assert_close
from torch.utils.data import ConcatDataset, Sampler

import mtl_plugins.mm.transforms  # noqa: F401
from mtl_plugins.mm.datasets import PartialDataset
from mtl_plugins.mm.evaluation import PartialCocoMetric, PartialSemSegMetric
from mtl_plugins.mm.samplers import SourceRatioBatchSampler

Json = dict[str, Any]

WIDTH, HEIGHT = 40, 30
CLASSES, SEG_CLASSES = ("car", "bus"), ("road", "sky", "car")
CATEGORIES = [{"id": 3, "name": "car"}, {"id": 7, "name": "bus"}]
IMAGES = ["a.jpg", "b.jpg", "c.jpg"]
# By image: COCO's category, x, y, width, height. Nobody finds anything on c.
BOXES = {"a.jpg": [(3, 2, 4, 10, 12), (7, 8, 5, 20, 20)], "b.jpg": [(7, 1, 1, 9, 9)]}
PSEUDO_BOXES = {"a.jpg": [(7, 3, 4, 11, 12)], "b.jpg": [(3, 20, 10, 15, 18), (3, 0, 0, 9, 9)]}
LABELS = {
    "gt_instances": {"boxes": True},
    "pseudo_instances": {"pseudo_ann_file": "pseudo.json"},
    "gt_sem_seg": {"seg": "masks"},
    "pseudo_sem_seg": {"pseudo_seg": "pseudo"},
}
LOAD = [{"type": "LoadImageFromFile"}, {"type": "LoadPartialAnnotations"}]
PACK = [{"type": "PackPartialInputs"}]

pytestmark = pytest.mark.usefixtures("mmdet_scope")


# --- data set -----------------------------------------------------------------------------------


def write_coco(path: Path, boxes: dict[str, Any], names: Sequence[str] = IMAGES) -> None:
    images = [
        {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT}
        for i, name in enumerate(names, start=1)
    ]
    found = [(i + 1, *box) for i, name in enumerate(names) for box in boxes.get(name, ())]
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": 0,
        }
        for number, (image, category, x, y, w, h) in enumerate(found, start=1)
    ]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    path.write_text(json.dumps(content))


def write_map(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(values).save(path)


def map_of(folder: str, name: str) -> np.ndarray:
    """Any classes, other ones for each source and image."""
    draw = np.random.default_rng([len(folder), ord(name[0])])
    return draw.choice(np.array([0, 1, 2, 255], np.uint8), (HEIGHT, WIDTH))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_coco(tmp_path / "labels.json", BOXES)
    write_coco(tmp_path / "pseudo.json", PSEUDO_BOXES)
    for name in IMAGES:
        write_map(tmp_path / "images" / name, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        for folder in ("masks", "pseudo"):
            write_map(tmp_path / folder / f"{name[0]}.png", map_of(folder, name))
    return tmp_path


def config(root: Path, has: Sequence[str] = (), **more: Any) -> Json:
    """A data set with some of ``LABELS``."""
    options: Json = {"boxes": False, "data_prefix": {"img": "images"}}
    for name in has:
        for key, value in LABELS[name].items():
            place = options["data_prefix"] if "seg" in key else options
            place[key] = value
    return {
        "type": "PartialDataset",
        "data_root": str(root),
        "ann_file": "labels.json",
        "metainfo": {"classes": CLASSES, "seg_classes": SEG_CLASSES},
        "pipeline": LOAD + PACK,
        **options,
        **more,
    }


def build(root: Path, *has: str, **more: Any) -> PartialDataset:
    return DATASETS.build(config(root, has, **more))


def corners(boxes: Sequence[tuple[int, ...]]) -> torch.Tensor:
    rows = [[x, y, x + w, y + h] for _, x, y, w, h in boxes]
    return torch.tensor(rows, dtype=torch.float).reshape(-1, 4)


@pytest.mark.parametrize("number", range(16))
def test_an_image_has_the_labels_it_has_and_no_others(root: Path, number: int) -> None:
    has = {name for bit, name in enumerate(LABELS) if number >> bit & 1}
    for name, example in zip(IMAGES, build(root, *has), strict=True):
        sample = example["data_samples"]
        crowds = {"ignored_instances"} if "gt_instances" in has else set()
        assert set(sample.keys()) == has | crowds
        for kind, boxes in (("gt", BOXES), ("pseudo", PSEUDO_BOXES)):
            if f"{kind}_instances" in has:
                found, expected = sample.get(f"{kind}_instances"), boxes.get(name, [])
                bboxes = getattr(found.bboxes, "tensor", found.bboxes)
                assert_close(bboxes, corners(expected))
                assert found.labels.tolist() == [(3, 7).index(box[0]) for box in expected]
        for kind, folder in (("gt", "masks"), ("pseudo", "pseudo")):
            if f"{kind}_sem_seg" in has:
                found = sample.get(f"{kind}_sem_seg").sem_seg
                np.testing.assert_array_equal(found[0], map_of(folder, name))


def test_crowds_are_those_of_the_labels(root: Path) -> None:
    content = json.loads((root / "labels.json").read_text())
    content["annotations"][0]["iscrowd"] = 1
    (root / "labels.json").write_text(json.dumps(content))
    sample = build(root, "gt_instances", "pseudo_instances")[0]["data_samples"]
    assert_close(sample.ignored_instances.bboxes.tensor, corners(BOXES["a.jpg"][:1]))
    assert_close(sample.gt_instances.bboxes.tensor, corners(BOXES["a.jpg"][1:]))
    assert_close(sample.pseudo_instances.bboxes, corners(PSEUDO_BOXES["a.jpg"]))


def test_the_teachers_boxes_are_of_the_same_images(root: Path) -> None:
    # Numbered alike, as converters do.
    write_coco(root / "pseudo.json", PSEUDO_BOXES, ["b.jpg", "x.jpg", "y.jpg"])
    with pytest.raises(ValueError, match=r"(?s)pseudo\.json.* 2 of the 3 .*labels\.json.*a\.jpg"):
        build(root, "pseudo_instances")
    # Another order, and more of them, is right.
    write_coco(root / "pseudo.json", PSEUDO_BOXES, ["x.jpg", *reversed(IMAGES)])
    found = build(root, "pseudo_instances")[0]["data_samples"].pseudo_instances
    assert_close(found.bboxes, corners(PSEUDO_BOXES["a.jpg"]))


def test_filters_look_at_the_labels(root: Path) -> None:
    write_coco(root / "pseudo.json", {"c.jpg": [(3, 1, 1, 9, 9)]})

    def kept(*has: str, **conditions: Any) -> list[str]:
        dataset = build(root, *has, filter_cfg=conditions)
        return [Path(dataset.get_data_info(i)["img_path"]).name for i in range(len(dataset))]

    assert kept("gt_instances", "pseudo_instances", filter_empty_gt=True) == ["a.jpg", "b.jpg"]
    assert kept("gt_instances", "pseudo_instances", min_size=HEIGHT) == IMAGES
    larger = json.loads((root / "labels.json").read_text())
    larger["images"][1]["height"] += 1
    (root / "labels.json").write_text(json.dumps(larger))
    assert kept("gt_instances", min_size=HEIGHT + 1) == ["b.jpg"]
    assert kept("gt_sem_seg", "pseudo_instances", filter_empty_gt=True) == IMAGES
    assert kept("gt_sem_seg", filter_empty_gt=True, min_size=HEIGHT + 1) == ["b.jpg"]


def test_maps_of_a_teacher_are_pngs_whatever_the_labels_are_called(root: Path) -> None:
    (root / "masks").rename(root / "old")
    for name in "abc":
        write_map(root / f"masks/{name}_trainIds.png", map_of("masks", name))
    sample = build(root, "gt_sem_seg", "pseudo_sem_seg", seg_map_suffix="_trainIds.png")[1]
    found = sample["data_samples"]
    np.testing.assert_array_equal(found.gt_sem_seg.sem_seg[0], map_of("masks", "b"))
    np.testing.assert_array_equal(found.pseudo_sem_seg.sem_seg[0], map_of("pseudo", "b"))


# --- transforms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("folder, has", [("masks", "gt_sem_seg"), ("pseudo", "pseudo_sem_seg")])
def test_a_map_of_another_size_is_named(root: Path, folder: str, has: str) -> None:
    write_map(root / folder / "b.png", np.zeros((HEIGHT, WIDTH - 1), np.uint8))
    dataset = build(root, "gt_sem_seg", has)
    dataset[0]
    with pytest.raises(ValueError, match=rf"{folder}/b\.png.*\(30, 39\).*b\.jpg.*\(30, 40\)"):
        dataset[1]


def test_a_map_of_one_bit_is_refused(root: Path) -> None:
    """OpenCV reads 1 of it as 255, which is no class."""
    Image.new("1", (WIDTH, HEIGHT), 1).save(root / "masks/b.png")
    with pytest.raises(ValueError, match=r"masks/b\.png.*less than 8 bits a pixel.*of 8 bits"):
        build(root, "gt_sem_seg")[1]


@pytest.mark.parametrize("missing", ["images/b.jpg", "masks/b.png", "pseudo/b.png"])
def test_a_missing_file_is_named(root: Path, missing: str) -> None:
    (root / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        build(root, "gt_sem_seg", "pseudo_sem_seg")[1]


PIPELINES: dict[str, list[Json]] = {
    "resize": [{"type": "Resize", "scale": (57, 33), "keep_ratio": True}],
    "shapes": [{"type": "RandomResize", "scale": [(30, 60), (80, 50)], "keep_ratio": False}],
    "flip": [{"type": "RandomFlip", "prob": [0.4, 0.3], "direction": ["horizontal", "vertical"]}],
    "crop": [{"type": "RandomCrop", "crop_size": (20, 25), "allow_negative_crop": True}],
    "pad": [{"type": "Pad", "size": (50, 64)}],
    "rotate": [{"type": "Rotate", "prob": 1.0}],
    "shear": [{"type": "ShearX", "prob": 1.0}],
    "translate": [{"type": "TranslateY", "prob": 1.0}],
    "all": [
        {"type": "PhotoMetricDistortion"},
        {"type": "RandomResize", "scale": [(30, 60), (80, 50)], "keep_ratio": True},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "RandomCrop", "crop_size": (20, 25), "allow_negative_crop": True},
        {"type": "Pad", "size_divisor": 32},
    ],
}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("maps")


def random_boxes(draw: np.random.Generator) -> list[Json]:
    starts = draw.integers(0, 20, (draw.integers(0, 4), 2))
    ends = starts + draw.integers(1, 10, starts.shape)
    return [
        {"bbox": box, "bbox_label": int(draw.integers(2)), "ignore_flag": 0}
        for box in np.hstack([starts, ends]).astype(float).tolist()
    ]


@pytest.mark.parametrize("name", PIPELINES)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_each_source_comes_out_as_if_alone(name: str, seed: int, scratch: Path) -> None:
    draw = np.random.default_rng(seed)
    sources = {}
    for source in ("gt", "pseudo"):
        path = scratch / f"{source}.png"
        write_map(path, draw.choice(np.array([0, 1, 2, 18, 255], np.uint8), (HEIGHT, WIDTH)))
        sources[source] = {"instances": random_boxes(draw), "seg_map_path": str(path)}
    shape = {"img_shape": (HEIGHT, WIDTH), "ori_shape": (HEIGHT, WIDTH), "img_path": "a.jpg"}
    pixels = draw.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    labels = sources["gt"] | {f"pseudo_{k}": v for k, v in sources["pseudo"].items()}
    with DefaultScope.overwrite_default_scope("mmdet"):
        both = run_pipeline(labels, shape, pixels, LOAD[1:] + PIPELINES[name] + PACK, seed)
        for source, mine in sources.items():
            own = [{"type": "LoadAnnotations", "with_bbox": True, "with_seg": True}]
            pipeline = own + PIPELINES[name] + [{"type": "PackDetInputs"}]
            expected = run_pipeline(mine, shape, pixels, pipeline, seed)
            assert torch.equal(both["inputs"], expected["inputs"])
            found, wanted = both["data_samples"], expected["data_samples"].gt_instances
            boxes = found.get(f"{source}_instances")
            bboxes = getattr(boxes.bboxes, "tensor", boxes.bboxes)
            assert_close(bboxes, wanted.bboxes.tensor, rtol=0, atol=0)
            assert torch.equal(boxes.labels, wanted.labels)
            pixel_labels = found.get(f"{source}_sem_seg").sem_seg
            assert torch.equal(pixel_labels, expected["data_samples"].gt_sem_seg.sem_seg)


def run_pipeline(
    labels: Json, shape: Json, pixels: np.ndarray, pipeline: list[Json], seed: int
) -> Json:
    np.random.seed(seed)
    return Compose(pipeline)({**labels, **shape, "img": pixels.copy()})


# --- metrics ------------------------------------------------------------------------------------


def predicted(root: Path, part: str, count: int) -> list[Json]:
    """Data samples with labels for one task and predictions for both."""
    samples = []
    for number in range(count):
        sample = build(root, part)[number]["data_samples"]
        draw = torch.Generator().manual_seed(number)
        boxes = corners(BOXES.get(IMAGES[number], [(3, 1, 1, 9, 9)]))
        boxes = boxes + torch.randn(boxes.shape, generator=draw)
        pred = InstanceData(
            bboxes=boxes,
            scores=torch.rand(len(boxes), generator=draw),
            labels=torch.randint(2, (len(boxes),), generator=draw),
        )
        classes = torch.randint(3, (1, HEIGHT, WIDTH), generator=draw)
        sample = sample.to_dict() | {"pred_sem_seg": {"sem_seg": classes}}
        samples.append(sample | {"pred_instances": pred.to_dict(), "img_id": number + 1})
    return samples


def measured(metric: Any, batches: Sequence[list[Json]], meta: Json) -> dict[str, float]:
    metric.dataset_meta = meta
    for batch in batches:
        metric.process({}, batch)
    return metric.evaluate(sum(map(len, batches)))


def test_metrics_of_a_mixed_batch_are_those_of_each_task_alone(root: Path) -> None:
    # Image numbers of the two sources overlap.
    det, seg = predicted(root, "gt_instances", 3), predicted(root, "gt_sem_seg", 3)
    mixed = [[seg[0], det[0]], [det[1], det[2]], [seg[1], seg[2]]]
    meta = build(root).metainfo
    options = {"ann_file": str(root / "labels.json"), "metric": "bbox"}
    boxes = measured(PartialCocoMetric(**options), mixed, meta)
    assert boxes == measured(CocoMetric(**options), [det], meta)
    assert 0 < boxes["coco/bbox_mAP"] < 1
    maps = measured(PartialSemSegMetric(), mixed, meta)
    expected = measured(SemSegMetric(), [seg], {"classes": SEG_CLASSES})
    assert 0 < maps["mIoU"] < 100
    # There it is the mean over classes.
    truth, predictions = (
        torch.cat([one[name]["sem_seg"].flatten() for one in seg])
        for name in ("gt_sem_seg", "pred_sem_seg")
    )
    right = (truth == predictions)[truth != 255].float().mean().item()
    assert maps.pop("aAcc") == pytest.approx(100 * right, abs=0.01)
    del expected["aAcc"]
    assert maps == expected


# --- sampler ------------------------------------------------------------------------------------

SIZES = (9, 4, 14)
LARGEST = 2


def joined(sizes: Sequence[int] = SIZES) -> ConcatDataset:
    return ConcatDataset([range(size) for size in sizes])


def default(seed: int = 0) -> DefaultSampler:
    return DefaultSampler(joined(), shuffle=True, seed=seed)


def source_of(index: int, sizes: Sequence[int] = SIZES) -> int:
    return next(i for i in range(len(sizes)) if index < sum(sizes[: i + 1]))


@pytest.mark.parametrize("ratio", [[1, 1, 2], [2, 1, 1], [1, 0, 3], [0, 0, 1]])
def test_every_batch_has_the_ratio(ratio: list[int]) -> None:
    sampler = SourceRatioBatchSampler(default(), 4, ratio)
    batches = list(sampler)
    assert len(batches) == len(sampler) == sum(SIZES) // 4
    for batch in batches:
        assert [[source_of(i) for i in batch].count(s) for s in range(3)] == [
            share * 4 // sum(ratio) for share in ratio
        ]


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), share=st.sampled_from([[1, 1, 2], [1, 1, 6], [2, 2, 4]]))
def test_no_image_comes_again_before_all_others_of_its_source(seed: int, share: list[int]) -> None:
    taken = chain.from_iterable(SourceRatioBatchSampler(default(seed), sum(share), share))
    counts = Counter(taken)
    start = 0
    for size in SIZES:
        times = [counts[i] for i in range(start, start + size)]
        assert max(times) - min(times) <= 1
        start += size


def test_a_part_of_a_source_is_another_one_in_the_next_epoch() -> None:
    base = default()
    sampler = SourceRatioBatchSampler(base, 3, [1, 1, 1])
    parts = []
    for epoch in range(2):
        base.set_epoch(epoch)
        assert list(sampler) == list(sampler)
        parts.append({i for batch in sampler for i in batch if source_of(i) == LARGEST})
    assert len(parts[0]) == len(parts[1]) == sum(SIZES) // 3
    assert parts[0] != parts[1]


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_rank(rank: int) -> None:
        monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda: (rank, 2))

    return set_rank


def test_two_ranks_share_no_image(as_rank: Any) -> None:
    taken, lengths = [], []
    for rank in range(2):
        as_rank(rank)
        base = DefaultSampler(joined((10, 8)), shuffle=True, seed=0)
        sampler = SourceRatioBatchSampler(base, 2, [1, 1])
        taken.append(set(chain.from_iterable(sampler)))
        lengths.append(len(sampler))
    assert lengths == [4, 4]
    assert all(taken) and not taken[0] & taken[1]


def test_an_infinite_sampler_goes_on_with_another_order() -> None:
    base = InfiniteSampler(joined(), shuffle=True, seed=0)
    sampler = SourceRatioBatchSampler(base, 4, [1, 1, 2])
    batches = list(islice(sampler, 12 * len(sampler)))
    for batch in batches:
        assert sorted(map(source_of, batch)) == [0, 1, 2, 2]
    epochs = [batches[i : i + len(sampler)] for i in range(0, len(batches), len(sampler))]
    assert len(set(map(str, epochs))) == 12
    assert set(chain.from_iterable(batches)) == set(range(sum(SIZES)))


class OneSource(Sampler):
    """A rank's share that is all of one source."""

    dataset = joined()

    def __iter__(self) -> Iterator[int]:
        return iter(range(9))

    def __len__(self) -> int:
        return 9


@pytest.mark.parametrize(
    ("batch_size", "ratio", "message"),
    [
        (4, [1, 1], r"ratio: \[1, 1\] .* 3 sources"),
        (4, [1, -1, 2], r"ratio: \[1, -1, 2\]"),
        (4, [1, 0.5, 0.5], r"ratio: \[1, 0.5, 0.5\]"),
        (4, [0, 0, 0], r"ratio: \[0, 0, 0\]"),
        (4, [1, 1, 1], r"batch of 4 .*\[1, 1, 1\]; a multiple of 3"),
        (30, [1, 1, 1], r"batch_size: 30 is more than the 27 images"),
    ],
)
def test_a_ratio_that_does_not_fit_is_refused(
    batch_size: int, ratio: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SourceRatioBatchSampler(default(), batch_size, ratio)


def test_one_source_is_refused() -> None:
    with pytest.raises(ValueError, match="is no ConcatDataset"):
        SourceRatioBatchSampler(DefaultSampler(range(8)), 4, [1])
    with pytest.raises(ValueError, match="source 1 has no image among the 9 of this rank"):
        list(SourceRatioBatchSampler(OneSource(), 4, [1, 1, 2]))
    assert len(list(SourceRatioBatchSampler(OneSource(), 4, [1, 0, 0]))) == 2


def test_allocation_keeps_the_ratio() -> None:
    base = default()
    # What an example has to be, to carry its tasks.
    base.dataset = type("Data", (ConcatDataset,), {})([range(size) for size in SIZES])
    inner = {"type": "SourceRatioBatchSampler", "ratio": [1, 1, 2]}
    sampler = DATA_SAMPLERS.build(
        {"type": "ISTABatchSampler", "tasks": ["det", "seg"], "batch_sampler": inner},
        default_args={"sampler": base, "batch_size": 4},
    )
    batches = list(sampler)
    assert len(batches) == len(sampler) == 2 * (sum(SIZES) // 4)
    trained = Counter()
    for batch in batches:
        assert sorted(map(source_of, batch)) == [0, 1, 2, 2]
        trained.update((int(index), task) for index in batch for task in index.tasks)
    for index in {index for index, _ in trained}:
        assert trained[index, "det"] == trained[index, "seg"] > 0


def test_built_from_a_config(root: Path) -> None:
    sources = [config(root, ["gt_instances"]), config(root, ["gt_sem_seg", "pseudo_instances"])]
    loader = Runner.build_dataloader(
        {
            "batch_size": 3,
            "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "batch_sampler": {"type": "SourceRatioBatchSampler", "ratio": [2, 1]},
            "dataset": {"type": "ConcatDataset", "datasets": sources},
        },
        seed=0,
    )
    batches = list(loader)
    assert len(batches) == len(loader) == 2
    for batch in batches:
        assert ["gt_instances" in s for s in batch["data_samples"]] == [True, True, False]
        assert ["pseudo_instances" in s for s in batch["data_samples"]] == [False, False, True]
