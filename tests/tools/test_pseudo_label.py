"""Pseudo labels: what the teachers say at the thresholds, and the same files after any kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pseudo_label
import pytest
import torch
from commands import ROOT, run
from dataset_converters import bdd100k as converter
from make_demo_data import main as draw
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou

from mtl_plugins.mm.datasets import BDD100KDataset

CONFIGS = ROOT / "configs/bdd100k"
JOINT = str(CONFIGS / "fcos-semfpn_r18-small_bdd100k.py")
SOURCES = ("det_train", "sem_seg_train")
TEACHERS = {"det": "fcos", "seg": "semfpn"}
Files = dict[str, bytes]


class Data:
    """Three images of each source, and a teacher for each task with a config of its own.

    Args:
        root: Folder for all of it.
    """

    def __init__(self, root: Path) -> None:
        self.bdd100k, self.derived, self.teachers = (
            root / name for name in ("bdd100k", "derived", "teachers")
        )
        size = ["--train", "6", "--val", "2", "--size", "128", "96"]
        draw(["--layout", "bdd100k", "--out", str(self.bdd100k), *size])
        converter.main([str(self.bdd100k), "--out", str(self.derived)])
        self.teachers.mkdir()

    @property
    def env(self) -> dict[str, str]:
        return {"BDD100K_ROOT": str(self.bdd100k), "BDD100K_DERIVED": str(self.derived)}

    def teacher(self, kind: str) -> list[str]:
        """The words of the command line for a teacher."""
        files = [str(self.teachers / f"{kind}.{suffix}") for suffix in ("py", "pth")]
        return [f"--{kind}", *files]

    @property
    def both(self) -> list[str]:
        return [*self.teacher("det"), *self.teacher("seg"), "--batch-size", "2"]

    def train(self, kind: str) -> None:
        """Makes a teacher that is sure of some things; of the right ones, it need not be."""
        cfg = Config.fromfile(CONFIGS / f"{TEACHERS[kind]}_r18-small_bdd100k.py")
        cfg.test_dataloader.dataset.pipeline[1].scale = (96, 96)
        cfg.model.backbone.base_channels, cfg.model.neck.in_channels = 16, [32, 64, 128]
        cfg.model.backbone.norm_cfg.num_groups = 16
        cfg.dump(self.teachers / f"{kind}.py")
        init_default_scope("mmdet")
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        with torch.no_grad():
            if kind == "det":
                model.bbox_head.conv_cls.weight *= 20
                model.bbox_head.conv_cls.bias.zero_()
            else:
                model.semantic_head.conv_seg.weight *= 300
        meta = {"dataset_meta": BDD100KDataset.METAINFO}
        checkpoint = {"state_dict": model.state_dict(), "meta": meta}
        torch.save(checkpoint, self.teachers / f"{kind}.pth")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Data]:
    data = Data(tmp_path_factory.mktemp("pseudo"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in data.env.items():
            patch.setenv(name, value)
        for kind in TEACHERS:
            data.train(kind)
        yield data


@pytest.fixture(scope="module")
def whole(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that one run of the command wrote."""
    derived = copied(data.derived, tmp_path_factory.mktemp("whole"))
    env = data.env | {"BDD100K_DERIVED": str(derived)}
    said = run("tools/pseudo_label.py", JOINT, *data.both, coco=derived, **env)
    assert "2/2" in said
    return derived / "pseudo"


@pytest.fixture
def derived(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Converted labels, nothing pseudo, where the config of this test looks."""
    folder = copied(data.derived, tmp_path)
    monkeypatch.setenv("BDD100K_DERIVED", str(folder))
    return folder


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers are loaded once a test, for those that start the command many times."""
    known: dict[Any, Any] = {}
    load = pseudo_label._teacher

    def once(config: str, checkpoint: str, args: Any) -> Any:
        key = (config, checkpoint, args.score_thr, args.nms_thr, args.seg_thr)
        if key not in known:
            known[key] = load(config, checkpoint, args)
        return known[key]

    monkeypatch.setattr(pseudo_label, "_teacher", once)


def copied(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place / folder.name))


def label(*words: str) -> None:
    """The command in this process."""
    pseudo_label.main([JOINT, *words, "--workers", "0"])


def files_of(folder: Path) -> Files:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def source(derived: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> BDD100KDataset:
    """A data set of the joint config that reads these labels, without augmentation."""
    monkeypatch.setenv("BDD100K_DERIVED", str(derived))
    cfg = Config.fromfile(JOINT).train_dataloader.dataset.datasets[number]
    steps = ("LoadImageFromFile", "LoadPartialAnnotations", "PackPartialInputs")
    return DATASETS.build(cfg | {"pipeline": [{"type": step} for step in steps]})


# --- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(2), ids=SOURCES)
def test_the_data_set_reads_what_the_teachers_say(
    data: Data, whole: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    det, seg = (init_detector(*data.teacher(kind)[1:], device="cpu") for kind in TEACHERS)
    # Lower ones never suppress higher ones: thresholds may come after.
    det.bbox_head.test_cfg.score_thr = 0.0
    det.bbox_head.test_cfg.nms.iou_threshold = 0.2
    logits = []
    seg.semantic_head.register_forward_hook(lambda *args: logits.append(args[-1]))
    kept = unsure = 0
    for example in source(whole.parent, number, monkeypatch):
        labels = example["data_samples"]
        found = inference_detector(det, labels.img_path).pred_instances
        found = found[found.scores >= 0.3]
        boxes = labels.pseudo_instances
        kept += len(boxes)
        sizes = found.bboxes[:, 2:] - found.bboxes[:, :2]
        found = found[(sizes >= 1).all(1)]  # MMDetection reads no narrower ones
        torch.testing.assert_close(boxes.bboxes, found.bboxes, rtol=1e-4, atol=1e-3)
        assert torch.equal(boxes.labels, found.labels)

        classes = inference_detector(seg, labels.img_path).pred_sem_seg.sem_seg[0]
        whole_image = F.interpolate(logits[-1], (96, 96), mode="bilinear")[:, :, :72]
        probability = F.interpolate(whole_image, (96, 128), mode="bilinear").softmax(1)[0].amax(0)
        read = labels.pseudo_sem_seg.sem_seg[0]
        near = (probability - 0.8).abs() < 1e-3
        assert torch.equal((read == 255)[~near], (probability < 0.8)[~near])
        assert ((read == classes) | (read == 255)).float().mean() > 0.999
        unsure += (read == 255).float().mean()
    assert kept > 0 and 0 < unsure < 3


@pytest.mark.parametrize("name", SOURCES)
def test_boxes_are_sure_and_apart(data: Data, whole: Path, name: str) -> None:
    content = json.loads((whole / f"{name}.json").read_text())
    images = json.loads((data.derived / f"{name}.json").read_text())["images"]
    assert content["images"] == images
    records = content["annotations"]
    assert [record["id"] for record in records] == list(range(1, len(records) + 1))
    assert min(record["score"] for record in records) >= 0.3
    for image in images:
        for category in content["categories"]:
            boxes = torch.tensor(
                [
                    record["bbox"]
                    for record in records
                    if (record["image_id"], record["category_id"]) == (image["id"], category["id"])
                ]
            ).reshape(-1, 4)
            corners = box_convert(boxes, "xywh", "xyxy")
            assert (corners[:, :2] >= 0).all() and (corners[:, 2:] <= torch.tensor([128, 96])).all()
            assert (box_iou(corners, corners).triu(1) <= 0.2 + 1e-4).all()
    assert {p.stem for p in (whole / name).glob("*.png")} == {
        Path(image["file_name"]).stem for image in images
    }


@pytest.mark.parametrize("kind", TEACHERS)
def test_one_teacher_alone(data: Data, whole: Path, derived: Path, kind: str) -> None:
    label(*data.teacher(kind), "--batch-size", "2")
    wanted = {
        name: content
        for name, content in files_of(whole).items()
        if ("/" in name) == (kind == "seg")
    }
    assert wanted and files_of(derived / "pseudo") == wanted


# --- stopped and started again ------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the tool may tidy up after it."""


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets so many changes of files happen, and stops before the next."""
    left = [0]

    def counted(function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return function(*args, **kwargs)

        return wrapper

    for owner, name in (
        (os, "replace"),
        (Path, "rename"),
        (Path, "unlink"),
        (pseudo_label.Boxes, "add"),
    ):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))

    def set_left(changes: int) -> None:
        left[0] = changes

    return set_left


@pytest.mark.parametrize("changes", [4, 7])
def test_killed_again_and_again(
    data: Data, whole: Path, derived: Path, loaded: None, kill_after: Any, changes: int
) -> None:
    kills = 0
    while True:
        kill_after(changes)
        try:
            label(*data.both)
        except Killed:
            kills += 1
            assert kills < 20
        else:
            break
    assert kills > 1
    kill_after(10**6)  # for pytest
    assert files_of(derived / "pseudo") == files_of(whole)


@pytest.mark.parametrize("end", ["", "[3", "[3, []]"])
def test_a_line_that_is_half_written(
    data: Data, whole: Path, derived: Path, loaded: None, kill_after: Any, end: str
) -> None:
    kill_after(2)  # the settings and the first batch
    with pytest.raises(Killed):
        label(*data.both)
    kill_after(10**6)
    lines = derived / "pseudo/det_train.json.lines"
    assert len(lines.read_text().splitlines()) == 3
    with lines.open("a") as file:
        file.write(end)
    label(*data.both)
    assert files_of(derived / "pseudo") == files_of(whole)


def test_a_real_kill(data: Data, whole: Path, derived: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "tools/pseudo_label.py", JOINT, *data.both],
        cwd=ROOT,
        env=os.environ | {"BDD100K_DERIVED": str(derived)},
        start_new_session=True,
    )
    while process.poll() is None and not list(derived.rglob("*.png")):
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not files_of(whole).keys() <= files_of(derived / "pseudo").keys()
    label(*data.both)
    assert files_of(derived / "pseudo") == files_of(whole)


def test_complete_labels_are_left_as_they_are(
    data: Data, whole: Path, derived: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(whole, derived)
    for path in (derived / "pseudo").rglob("*"):
        os.utime(path, (1, 1))
    monkeypatch.setattr("mtl_plugins.mm.models.SemanticDetector.test_step", None)
    label(*data.both)
    assert files_of(derived / "pseudo") == files_of(whole)
    assert {path.stat().st_mtime for path in (derived / "pseudo").rglob("*.*")} == {1}


# --- refused ------------------------------------------------------------------------------------


OTHER: dict[str, list[str]] = {
    "score": ["--score-thr", "0.4"],
    "nms": ["--nms-thr", "0.5"],
    "batch_size": ["--batch-size", "3"],
    "probability": ["--seg-thr", "0.7"],
}


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "half"])
@pytest.mark.parametrize("name", OTHER)
def test_other_settings_are_refused(
    data: Data,
    whole: Path,
    derived: Path,
    loaded: None,
    kill_after: Any,
    name: str,
    complete: bool,
) -> None:
    kind = "seg" if name == "probability" else "det"
    words = data.teacher(kind)
    kill_after(10**6)
    if complete:
        copied(whole, derived)
    else:
        kill_after(3)
        with pytest.raises(Killed):
            label(*words, "--batch-size", "2")
        kill_after(10**6)
    before = files_of(derived)
    with pytest.raises(SystemExit, match=rf"pseudo/det_train.* other settings, .*'{name}'.*Remove"):
        label(*words, "--batch-size", "2", *OTHER[name])
    assert files_of(derived) == before


def test_another_teacher_or_other_images_are_refused(
    data: Data, whole: Path, derived: Path, tmp_path: Path
) -> None:
    copied(whole, derived)
    option, config, checkpoint = data.teacher("seg")
    other = tmp_path / "other.pth"
    saved = torch.load(checkpoint, weights_only=False)
    torch.save(saved | {"more": 1}, other)
    with pytest.raises(SystemExit, match="pseudo/det_train has labels .*'teacher'"):
        label(option, config, str(other), "--batch-size", "2")
    (derived / "det_train.json").write_text((derived / "det_train.json").read_text() + " ")
    with pytest.raises(SystemExit, match="pseudo/det_train has labels .*'images'"):
        label(option, config, checkpoint, "--batch-size", "2")


def test_maps_of_unknown_origin_are_refused(data: Data, derived: Path) -> None:
    (derived / "pseudo/det_train").mkdir(parents=True)
    (derived / "pseudo/det_train/train-000000.png").touch()
    with pytest.raises(SystemExit, match="pseudo/det_train has labels with other settings, None"):
        label(*data.teacher("seg"))


@pytest.mark.parametrize("kind, key", [("det", "classes"), ("seg", "seg_classes")])
def test_other_classes_are_refused_and_nothing_is_written(
    data: Data, derived: Path, tmp_path: Path, kind: str, key: str
) -> None:
    option, config, checkpoint = data.teacher(kind)
    saved = torch.load(checkpoint, weights_only=False)
    saved["meta"]["dataset_meta"] |= {key: ("dog", "cat")}
    other = tmp_path / "other.pth"
    torch.save(saved, other)
    with pytest.raises(SystemExit, match=f"--{kind}: .*'dog', 'cat'.* the data set has .*'rider'"):
        label(option, config, str(other))
    assert not (derived / "pseudo").exists()


def test_what_is_missing_is_named(
    data: Data, derived: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="--det: there is no file 'no.pth'"):
        label("--det", data.teacher("det")[1], "no.pth")
    with pytest.raises(SystemExit, match="a pseudo_ann_file for --det"):
        label()
    (derived / "sem_seg_train.json").unlink()
    with pytest.raises(SystemExit, match=r"datasets\[1\].ann_file: there is no .*sem_seg_train"):
        label(*data.both)
    assert not (derived / "pseudo").exists()


def test_a_missing_image_is_named_and_can_come_later(
    data: Data, whole: Path, derived: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied(data.bdd100k, tmp_path)
    monkeypatch.setenv("BDD100K_ROOT", str(root))
    image = root / "images/100k/train/train-000004.jpg"
    image.rename(tmp_path / "aside.jpg")
    with pytest.raises(FileNotFoundError, match=image.name):
        label(*data.both)
    (tmp_path / "aside.jpg").rename(image)
    label(*data.both)
    assert files_of(derived / "pseudo") == files_of(whole)


# --- another data set ---------------------------------------------------------------------------


def test_folders_below_a_root_and_more_categories(data: Data, whole: Path, tmp_path: Path) -> None:
    """What BDD100K's files happen not to have: a data_root, folders in names, other categories."""
    content = json.loads((data.derived / "det_train.json").read_text())
    content["categories"].insert(0, {"id": 77, "name": "tram"})
    for image in content["images"]:
        image["file_name"] = f"train/{image['file_name']}"
    (tmp_path / "labels.json").write_text(json.dumps(content))
    shutil.copytree(data.bdd100k / "images/100k", tmp_path / "images")
    dataset = {
        "type": "PartialDataset",
        "data_root": str(tmp_path),
        "ann_file": "labels.json",
        "pseudo_ann_file": "pseudo.json",
        "data_prefix": {"img": "images", "pseudo_seg": "pseudo"},
        "metainfo": BDD100KDataset.METAINFO,
        "indices": 2,
        "pipeline": [],
    }
    base = Config.fromfile(JOINT)
    cfg = {"custom_imports": base.custom_imports, "train_dataloader": {"dataset": dataset}}
    Config(cfg).dump(tmp_path / "config.py")
    words = [str(tmp_path / "config.py"), *data.both, "--workers", "0"]
    pseudo_label.main(words)
    read = DATASETS.build(dataset | {"data_root": str(tmp_path)})
    theirs = json.loads((whole / "det_train.json").read_text())
    assert len(read) == 2
    for i in range(2):
        info = read.get_data_info(i)
        name = Path(info["img_path"]).stem
        np.testing.assert_array_equal(
            cv2.imread(info["pseudo_seg_map_path"], -1),
            cv2.imread(str(whole / f"det_train/{name}.png"), -1),
        )
        assert [box["bbox_label"] + 1 for box in info["pseudo_instances"]] == [
            record["category_id"]
            for record in theirs["annotations"]
            if record["image_id"] == info["img_id"] and min(record["bbox"][2:]) >= 1
        ]
