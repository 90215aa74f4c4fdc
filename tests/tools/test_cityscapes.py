"""The drawn Cityscapes: maps that follow from the polygons, MMDetection's converter, a run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import ROOT, TWO_STEPS, run
from make_demo_data import main
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from two_processes import output_of

SPLITS = {"train": 6, "val": 3}
# id and train id in Cityscapes' table of labels.
STUFF = {"road": (7, 0), "building": (11, 2), "wall": (12, 3)}
THINGS = {"person": (24, 11), "rider": (25, 12), "car": (26, 13), "truck": (27, 14)}
THINGS |= {"bus": (28, 15), "train": (31, 16), "motorcycle": (32, 17), "bicycle": (33, 18)}
BASELINE, SMALL = (
    ROOT / f"configs/cityscapes/mask-rcnn_{name}_fpn_cityscapes.py" for name in ("r50", "r18-small")
)


def _draw(root: Path, layout: str) -> Path:
    counts = [word for split, n in SPLITS.items() for word in (f"--{split}", str(n))]
    main(["--layout", layout, "--out", str(root), *counts, "--size", "200", "150"])
    return root


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _draw(tmp_path_factory.mktemp("demo") / "cityscapes", "cityscapes")


@pytest.fixture(scope="module")
def coco_masks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[np.ndarray]]]:
    """The visible masks of the same scenes, from the other layout."""
    root = _draw(tmp_path_factory.mktemp("demo") / "coco", "coco")
    files = {split: COCO(str(root / f"annotations/instances_{split}2017.json")) for split in SPLITS}
    return {
        split: [
            [file.annToMask(a).astype(bool) for a in file.loadAnns(file.getAnnIds(imgIds=image))]
            for image in sorted(file.imgs)
        ]
        for split, file in files.items()
    }


@pytest.fixture(scope="module")
def converted(cityscapes: Path) -> Path:
    """The data with the files of MMDetection's own converter."""
    import mmdet

    converter = Path(mmdet.__file__).parent / ".mim/tools/dataset_converters/cityscapes.py"
    out = cityscapes / "annotations"
    run(str(converter), str(cityscapes), "-o", str(out), coco=cityscapes)
    return cityscapes


def _stems(root: Path, split: str) -> list[str]:
    suffix = "_leftImg8bit.png"
    images = sorted((root / "leftImg8bit" / split).glob(f"*/*{suffix}"))
    return [f"{path.parent.name}/{path.name.removesuffix(suffix)}" for path in images]


def _map(root: Path, split: str, stem: str, name: str) -> np.ndarray:
    return cv2.imread(str(root / f"gtFine/{split}/{stem}_gtFine_{name}.png"), cv2.IMREAD_UNCHANGED)


def _instances(root: Path, split: str, stem: str) -> list[np.ndarray]:
    ids = _map(root, split, stem, "instanceIds")
    return [ids == number for number in np.unique(ids[ids >= 1000])]


@pytest.mark.parametrize("split, count", [*SPLITS.items(), ("test", SPLITS["val"])])
def test_files_have_their_official_names(cityscapes: Path, split: str, count: int) -> None:
    city = f"{split}ville"
    stems = [f"{city}/{city}_{number:06d}_000019" for number in range(count)]
    kinds = ["polygons.json", "instanceIds.png", "labelIds.png", "labelTrainIds.png"]
    expected = {f"leftImg8bit/{split}/{stem}_leftImg8bit.png" for stem in stems}
    expected |= {f"gtFine/{split}/{stem}_gtFine_{kind}" for stem in stems for kind in kinds}
    expected |= {f"disparity/{split}/{stem}_disparity.png" for stem in stems}
    found = (path for path in cityscapes.glob(f"*/{split}/**/*") if path.is_file())
    assert {path.relative_to(cityscapes).as_posix() for path in found} == expected


@pytest.mark.parametrize("split", [*SPLITS, "test"])
def test_maps_are_the_polygons_rasterised(cityscapes: Path, split: str) -> None:
    for stem in _stems(cityscapes, split):
        file = cityscapes / f"gtFine/{split}/{stem}_gtFine_polygons.json"
        content = json.loads(file.read_text())
        height, width = content["imgHeight"], content["imgWidth"]
        assert (height, width) == (150, 200)
        drawn = {name: Image.new("I", (width, height)) for name in ("instanceIds", "labelIds")}
        drawn["labelTrainIds"] = Image.new("I", (width, height), 255)
        seen: Counter[str] = Counter()
        for record in content["objects"]:
            name = record["label"]
            label, train_id = (STUFF | THINGS)[name]
            instance = 1000 * label + seen[name] if name in THINGS else label
            seen[name] += 1
            outline = [tuple(point) for point in record["polygon"]]
            for image, value in zip(drawn.values(), (instance, label, train_id), strict=True):
                ImageDraw.Draw(image).polygon(outline, fill=value)
        for name, image in drawn.items():
            written = _map(cityscapes, split, stem, name)
            assert written.dtype == (np.uint16 if name == "instanceIds" else np.uint8)
            np.testing.assert_array_equal(written, np.array(image))


@pytest.mark.parametrize("split", SPLITS)
def test_each_drawn_object_is_one_instance(
    cityscapes: Path, coco_masks: dict[str, list[list[np.ndarray]]], split: str
) -> None:
    for stem, masks in zip(_stems(cityscapes, split), coco_masks[split], strict=True):
        instances = _instances(cityscapes, split, stem)
        overlap = [[(a & b).sum() / (a | b).sum() for b in instances] for a in masks]
        assert len(instances) == len(masks)
        assert np.min(np.max(overlap, axis=1)) > 0.95
        assert len(set(np.argmax(overlap, axis=1))) == len(masks)
        assert (_map(cityscapes, split, stem, "labelIds") == 0).mean() < 1e-3


def test_the_test_split_has_no_labels(cityscapes: Path) -> None:
    for stem in _stems(cityscapes, "test"):
        assert not _map(cityscapes, "test", stem, "instanceIds").any()


@pytest.mark.parametrize("split", SPLITS)
def test_mmdet_converts_all_instances(converted: Path, split: str) -> None:
    file = COCO(str(converted / f"annotations/instancesonly_filtered_gtFine_{split}.json"))
    assert {c["name"]: c["id"] for c in file.cats.values()} == {
        name: label for name, (label, _) in THINGS.items()
    }
    images = {Path(record["file_name"]).name: image for image, record in file.imgs.items()}
    stems = _stems(converted, split)
    assert len(images) == len(stems) == SPLITS[split]
    for stem in stems:
        image = images[f"{Path(stem).name}_leftImg8bit.png"]
        records = file.loadAnns(file.getAnnIds(imgIds=image))
        assert not any(record["iscrowd"] for record in records)
        found = [file.annToMask(record).astype(bool) for record in records]
        np.testing.assert_array_equal(found, _instances(converted, split, stem))


def test_a_run_trains_and_validates(converted: Path, tmp_path: Path) -> None:
    arguments = [str(SMALL), "--mtl", "pcgrad", "--work-dir", str(tmp_path), *TWO_STEPS]
    # Untrained scores are low; without any detection nothing would be measured.
    arguments += ["train_cfg.val_interval=2", "model.test_cfg.rcnn.score_thr=0.0"]
    env = {"CITYSCAPES_ROOT": str(converted)}
    output_of("tools/train.py", *arguments, log=tmp_path / "train.log", **env)
    (scalars,) = tmp_path.rglob("scalars.json")
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    assert {"mtl/gds", "mtl/loss/detection", "mtl/loss/mask"} <= lines[0].keys()
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= lines[-1].keys()


@pytest.mark.parametrize("path", [BASELINE, SMALL], ids=lambda path: path.stem)
def test_configs_build(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITYSCAPES_ROOT", "elsewhere")
    cfg = Config.fromfile(path)
    init_default_scope("mmdet")
    from mmdet.registry import DATASETS, MODELS

    for split in SPLITS:
        dataset = cfg[f"{split}_dataloader"].dataset
        assert (dataset.type, dataset.data_root) == ("CityscapesDataset", "elsewhere/")
        assert dataset.data_prefix.img == f"leftImg8bit/{split}/"
        built = DATASETS.build(dataset | {"lazy_init": True})
        assert built.metainfo["classes"] == tuple(THINGS)
    assert cfg.test_dataloader == cfg.val_dataloader and cfg.test_evaluator == cfg.val_evaluator
    assert cfg.val_evaluator.ann_file == "elsewhere/" + cfg.val_dataloader.dataset.ann_file
    heads = MODELS.build(cfg.model).roi_head
    assert heads.bbox_head.num_classes == heads.mask_head.num_classes == len(THINGS)


def test_the_baseline_has_the_schedule_of_detectron2() -> None:
    cfg = Config.fromfile(BASELINE)
    resize = cfg.train_dataloader.dataset.pipeline[2]
    assert resize.scales == [(2048, side) for side in (800, 832, 864, 896, 928, 960, 992, 1024)]
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 8
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.end, warm_up.start_factor) == (1000, 0.001)
    assert (steps.milestones, steps.gamma) == ([18000], 0.1)
    assert (cfg.train_cfg.max_iters, cfg.optim_wrapper.optimizer.lr) == (24000, 0.01)
